//! Warnings about endpoints of a peer that other peers do not receive or cannot reach.

use enjambre_core::Endpoint;

/// Returns the problem with the `advertised` endpoints of a peer that listens at `own`, and its remedy.
pub(super) fn warning(own: &[Endpoint], advertised: &[Endpoint], tracker: &Endpoint) -> Option<String> {
    let is_local_swarm = own.iter().all(Endpoint::is_loopback) && tracker.is_loopback();
    if own.is_empty() || is_local_swarm {
        return None;
    }
    let missing: Vec<String> = own
        .iter()
        .filter(|own| !own.is_loopback() && !advertised.iter().any(|found| is_announced_as(own, found)))
        .map(|own| own.with_id(None).to_string())
        .collect();
    if !missing.is_empty() {
        return Some(format!(
            "the tracker does not announce {}: this peer reaches the tracker from another address; listen at [::] instead of \
             0.0.0.0 if that address is IPv6, or let the operator add the host to tracker.announced_hosts",
            missing.join(", ")
        ));
    }
    if advertised.iter().any(|endpoint| !endpoint.is_loopback()) {
        return None;
    }
    let cause = if tracker.is_loopback() { " because the tracker is reached over loopback" } else { "" };
    Some(format!(
        "only loopback addresses are advertised{cause}, so peers on other hosts cannot reach this one; set \
         transport.advertise to a reachable address"
    ))
}

/// Returns whether `found` is the form of `own` in which the tracker announces it.
fn is_announced_as(own: &Endpoint, found: &Endpoint) -> bool {
    let is_same_host = own.is_unspecified() || own.host() == found.host();
    is_same_host && own.scheme() == found.scheme() && own.port() == found.port()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning_for(own: &[&str], advertised: &[&str], tracker: &str) -> Option<String> {
        let parse = |all: &[&str]| all.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        warning(&parse(own), &parse(advertised), &tracker.parse().unwrap())
    }

    const LOCAL: &str = "zmq://127.0.0.1:7700";
    const REMOTE: &str = "zmq://tracker.example.org:7700";

    #[test]
    fn wildcard_listener_announced_as_loopback_has_a_warning() {
        let text = warning_for(&["tcp://0.0.0.0:1"], &["tcp://127.0.0.1:1"], LOCAL).unwrap();
        assert!(text.contains("reached over loopback") && text.contains("transport.advertise"), "{text}");
        assert_eq!(warning_for(&["tcp://[::]:1"], &["tcp://10.0.0.1:1"], REMOTE), None);
        assert_eq!(warning_for(&["tcp://127.0.0.1:1"], &["tcp://127.0.0.1:1"], LOCAL), None);
        assert_eq!(warning_for(&[], &[], REMOTE), None);
    }

    #[test]
    fn loopback_listener_with_remote_tracker_has_a_warning() {
        assert!(warning_for(&["tcp://127.0.0.1:1"], &[], REMOTE).unwrap().contains("only loopback"));
    }

    #[test]
    fn endpoint_that_the_tracker_leaves_out_has_a_warning() {
        let own = ["tcp://0.0.0.0:1", "tcp://peer.example.org:1"];
        let text = warning_for(&own, &["tcp://10.0.0.1:1"], REMOTE).unwrap();
        assert!(text.contains("peer.example.org") && text.contains("tracker.announced_hosts"), "{text}");
        assert!(warning_for(&own[..1], &[], REMOTE).unwrap().contains("[::]"));
        assert_eq!(warning_for(&own, &["tcp://10.0.0.1:1", "tcp://peer.example.org:1"], REMOTE), None);
    }
}
