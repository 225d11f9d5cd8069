//! Connects the library of a peer with trackers: offers, announcements and repair.

pub mod announcer;
pub mod offers;
pub mod repair;
