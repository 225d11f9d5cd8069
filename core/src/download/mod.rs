//! Getting files from other peers: which piece to ask of whom, the conversations, and what becomes of the pieces.
//!
//! [`schedule`] decides and touches no socket, clock or random source of its own. [`proof`] settles what the
//! size and the piece hashes of a file are before anything is kept. [`transfer`] drives one file from start to
//! end, [`downloader`] shares transfers among those who wait for them, [`directory`] gets the members of a
//! collection.

pub mod schedule;
