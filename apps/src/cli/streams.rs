//! Paths that name the open files of this process. A running node, which is another process, has other files there.

use std::path::Path;

/// Whether an argument names the standard input, also if that is a file.
pub(super) fn is_stdin(path: &Path) -> bool {
    ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"].iter().any(|name| path == Path::new(name))
}

/// Whether an argument names the standard output, also if that is a file.
pub(super) fn is_stdout(path: &Path) -> bool {
    ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path == Path::new(name))
}

/// Whether a path names an open file of this process, or a path in an open directory.
pub(super) fn is_descriptor(path: &Path) -> bool {
    let all = ["/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/fd", "/proc/self/fd"];
    all.iter().any(|name| path.starts_with(name))
}
