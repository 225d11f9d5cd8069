//! End-to-end tests of the program with real processes, sockets and databases.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod api;
mod api_schema;
mod command_line;
mod config_files;
mod custom_program;
mod demo;
mod directories;
mod download;
mod downloads;
mod formats;
mod http;
mod http_clients;
mod invite_only;
mod invite_only_storage;
mod liveness;
mod logs;
mod metrics;
mod postgres;
mod protocol_vectors;
mod python;
mod secure;
mod security_page;
mod several_trackers;
mod shared_catalogue;
mod start_stop;
mod storage_check;
mod storage_copy;
mod storage_dump;
mod swarm;
mod uploads;
