//! The program under faults and attacks: kills, power cuts, damaged files, full disks and hostile remotes.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[cfg(target_os = "linux")]
mod attacks;
mod bit_rot;
mod damage;
mod full_disk;
mod hostile;
mod invalid_data;
mod mounts;
mod outsiders;
mod power_cut;
mod torture;
