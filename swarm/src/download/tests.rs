//! Tests of whole downloads.

mod exchange;
mod queue;
mod reader;
mod slow_providers;
mod storage_wait;
mod transfers;
mod world;
