//! Whole swarms on one thread, from a seed: the real core over memory storage and memory transport, with faults.
//!
//! A [`world`] has trackers on a memory disk and peers with disks of their own, under tokio's paused clock. A generator
//! that follows from the seed lets people publish, get and remove, and lets machines crash, lose power, run out of room and
//! lose each other. Then the faults stop, and [`calm`] asks for what has to hold. A seed gives the same [`trace`] each time.
//! What is simulated and what not is in `docs/SIMULATION.md`.

pub mod calm;
pub mod clock;
pub mod faults;
pub mod flaw;
pub mod line;
pub mod manners;
pub mod model;
pub mod peer;
pub mod people;
pub mod rest;
pub mod run;
pub mod trace;
pub mod tracker;
pub mod world;
