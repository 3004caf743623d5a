"""What a reader needs of a figure: complete legends, text that can be read."""


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def shown(figure):
    """Titles of all axes that have one."""
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def legible(figure):
    """No text or legend leaves the page, none overlaps another, and none is smaller than 7 points."""
    figure.draw_without_rendering()
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis in filter(lambda axis: axis.get_visible(), (axes.xaxis, axes.yaxis)):
            low, high = sorted(axis.get_view_interval())
            texts += [label for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high
                      for label in (tick.label1, tick.label2)]
    texts = [text for text in texts if text.get_visible() and text.get_text()]
    legends = [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]
    boxes = [part.get_window_extent() for part in [*texts, *legends]]
    page = figure.bbox.padded(0.5)
    apart = not any(a.overlaps(b) for index, a in enumerate(boxes) for b in boxes[:index])
    on_page = all(page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1 for box in boxes)
    return apart and on_page and min(text.get_fontsize() for text in texts) >= 7
