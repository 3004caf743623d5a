"""How the C++ kernels are built, kept and loaded."""

import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from forked import server
from fresh import in_a_fresh_process
from model.ops import build, cpu
from model.ops.build import BuildError, library

needs_kernels = pytest.mark.skipif(cpu.unavailable_reason() is not None, reason=f"no C++: {cpu.unavailable_reason()}")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    server()                                                # whose processes have the environment that it starts in
    monkeypatch.setenv("S2AMSNET_CACHE", str(tmp_path / "cache"))
    library.cache_clear()
    yield tmp_path
    library.cache_clear()


def one_function(folder, body="return 41 + 1;"):
    source = folder / "answer.cpp"
    source.write_text(f'extern "C" int answer() {{ {body} }}\n')
    return source


def answer(source, cache):
    """What the function returns, and the number of the process."""
    os.environ["S2AMSNET_CACHE"] = cache
    return library(source).answer(), os.getpid()


@needs_kernels
def test_a_build_is_kept_and_a_changed_source_is_built_anew(cache, caplog):
    caplog.set_level("INFO", logger="model.ops.build")
    for _ in range(2):
        assert library(one_function(cache)).answer() == 42
        library.cache_clear()
    assert sum("Compiling answer.cpp" in message for message in caplog.messages) == 1
    assert library(one_function(cache, "return 7;")).answer() == 7
    assert len(list((cache / "cache").glob("answer-*.so"))) == 2


@pytest.mark.slow
@needs_kernels
def test_processes_wait_for_the_one_that_builds(cache):
    source = one_function(cache)
    with ProcessPoolExecutor(2, server()) as processes:
        asked = [processes.submit(answer, source, os.environ["S2AMSNET_CACHE"]) for _ in range(2)]
        (one, first), (other, second) = (each.result() for each in asked)
    assert one == other == 42 and first != second
    assert len(list((cache / "cache").glob("*.so"))) == 1


@needs_kernels
def test_a_source_that_does_not_compile_is_a_build_error_and_leaves_nothing(cache):
    with pytest.raises(BuildError, match="the compiler failed"):
        library(one_function(cache, "return nothing;"))
    assert not list((cache / "cache").glob("*.so")) and not list((cache / "cache").glob("*-build-*"))


def test_no_compiler_and_no_place_are_build_errors(cache, monkeypatch):
    monkeypatch.setenv("CXX", "ccache g++")
    with pytest.raises(BuildError, match="CXX = 'ccache g..' is not the name or path of a program. Set CXX to"):
        library(one_function(cache))
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(build.shutil, "which", lambda name: name)
    monkeypatch.setenv("S2AMSNET_CACHE", str(cache / "answer.cpp" / "below a file"))
    with pytest.raises(BuildError, match="cannot be used .*below a file.*. Set S2AMSNET_CACHE to a folder of your own"):
        library(one_function(cache))


@needs_kernels
def test_a_library_in_the_cache_is_not_built_again(cache, monkeypatch):
    source = one_function(cache)
    library(source)
    library.cache_clear()
    monkeypatch.setattr(build, "compile_into", None)
    monkeypatch.setattr(build, "FileLock", None)            # so that the cache may be read-only
    assert library(source).answer() == 42


def elsewhere(source):
    """What a process of its own answers, for this one would go on with what it has loaded once."""
    return in_a_fresh_process(answer, source, os.environ["S2AMSNET_CACHE"])[0]


@pytest.mark.slow
@needs_kernels
def test_a_damaged_library_is_built_again(cache):
    """Cut to half, one was a SIGBUS; empty, it meant the reference ever after; one bit may be another."""
    source = one_function(cache)
    assert elsewhere(source) == 42
    built, = (cache / "cache").glob("answer-*.so")
    for damage in (lambda whole: whole[:len(whole) // 2], lambda whole: b"",
                   lambda whole: whole[:-1] + bytes([whole[-1] ^ 1])):
        built.write_bytes(content := damage(built.read_bytes()))
        assert not build.whole(built) and elsewhere(source) == 42
        assert build.whole(built) and built.read_bytes() != content


@pytest.mark.slow
@needs_kernels
def test_a_whole_library_that_cannot_be_loaded_is_built_once_more(cache, caplog, monkeypatch):
    caplog.set_level("INFO", logger="model.ops.build")
    source = one_function(cache)
    assert elsewhere(source) == 42
    built, = (cache / "cache").glob("answer-*.so")
    attempts = []

    def spoil(*_):
        attempts.append(1)
        built.write_text("no library")
        built.with_suffix(build.DIGEST).write_text(build.digest(built))

    spoil()
    with monkeypatch.context() as patch, pytest.raises(BuildError, match="cannot be used .* Set S2AMSNET_CACHE"):
        patch.setattr(build, "compile_into", spoil)
        library(source)
    assert len(attempts) == 2
    assert library(source).answer() == 42 and "it is built once more" in caplog.text


@needs_kernels
def test_a_library_that_others_can_write_is_not_loaded(cache):
    source = one_function(cache)
    library(source)
    built, = (cache / "cache").glob("answer-*.so")
    built.chmod(0o777)
    library.cache_clear()
    assert library(source).answer() == 42 and built.stat().st_mode & 0o777 == 0o700


def test_the_cache_is_the_users_alone(cache, monkeypatch):
    folder = build.cache_folder()
    assert folder == cache / "cache" and folder.stat().st_mode & 0o777 == 0o700
    for mode in (0o770, 0o702):
        folder.chmod(mode)
        with pytest.raises(BuildError, match="others than you can write .*cache. Set S2AMSNET_CACHE to"):
            build.cache_folder()
        assert folder.stat().st_mode & 0o777 == mode             # it may be shared for a reason
    folder.chmod(0o755)
    assert build.cache_folder() == folder
    if os.geteuid() == 0:
        os.chown(folder, 1, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(BuildError, match="others than you"):
        build.cache_folder()


def test_the_default_cache_is_closed_to_others(tmp_path, monkeypatch):
    """Older programs left its mode to the umask."""
    monkeypatch.delenv("S2AMSNET_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "s2amsnet").mkdir()
    (tmp_path / "s2amsnet").chmod(0o775)
    assert build.cache_folder().stat().st_mode & 0o777 == 0o700


@needs_kernels
def test_what_a_killed_build_left_is_removed(cache):
    source = one_function(cache)
    library(source)
    built, = (cache / "cache").glob("answer-*.so")
    built.unlink()
    (cache / "cache" / f"{built.stem}-build-left").mkdir()
    library.cache_clear()
    assert library(source).answer() == 42 and not list((cache / "cache").glob("*-build-*"))
