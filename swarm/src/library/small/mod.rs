//! Complete small files, many at a time: read at once, and stored with few commits.
//!
//! A small file has at most one piece. For thousands of files, an open file, several commits and a task for each of them
//! would be most of the work. Here one task writes a batch and one commit records it. Until the next checkpoint such a
//! file is *unsynced*: it is stored, but may not survive a power cut, and its record is not complete. If it is opened
//! meanwhile, it becomes an ordinary open file with unsynced pieces.

mod add;
mod checkpoint;
mod files;
mod read;

pub use files::{MAX_SMALL, SmallContent, SmallCopy, SmallFile, SmallOutput};
