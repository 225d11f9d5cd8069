# Shortcuts for the commands in CONTRIBUTING.md. `.ci/run` runs everything that a change must pass.

[private]
default:
    @just --list

# Check formatting, lints, documentation and dependencies
check:
    cargo fmt --all --check
    cargo clippy --locked --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps
    cargo deny --all-features check bans licenses sources

# Run unit, property and conformance tests
test *args:
    cargo test --locked --workspace --exclude enjambre-tests {{ args }}

# Run the end-to-end tests: real processes, sockets and databases
e2e *args:
    cargo test --locked --package enjambre-tests {{ args }}

# Run the long fault tests: kills, damaged databases, simulated swarms, power cuts (root only)
faults kills="1000" seeds="500" worlds="10000" cuts="50":
    cargo run --release --package enjambre-tests --example torture -- --backend sqlite --kills {{ kills }}
    cargo run --release --package enjambre-tests --example torture -- --backend sled --kills {{ kills }}
    cargo run --release --package enjambre-tests --example damage -- --seeds {{ seeds }}
    cargo run --release --package enjambre-tests --example simulate -- --seeds {{ worlds }}
    [ "$(id -u)" != 0 ] || cargo run --release --package enjambre-tests --example power_cut -- --cuts {{ cuts }}

# Run each fuzz target of a package for a number of seconds with coverage feedback (needs cargo-bolero)
fuzz package="enjambre-core" seconds="60":
    for target in $(cargo bolero list --package {{ package }} | sed -n 's/.*"test":"\([^"]*\)".*/\1/p'); do \
        cargo bolero test --package {{ package }} --sanitizer NONE --time {{ seconds }}s "$target" || exit 1; \
    done

# Run the benchmarks of the crates, or of the packages named: `just bench enjambre-swarm`
bench *packages="enjambre enjambre-swarm enjambre-transport enjambre-storage-sqlite enjambre-storage-sled":
    cargo bench {{ prepend("--package ", packages) }}

# Run a tracker and three peers on this machine
demo:
    cargo run --release -- demo
