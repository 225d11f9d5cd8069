//! Fuzz targets: headers as they come from the network.

use super::lookup::{EncodedPeer, Lookup, ProvidersReply};
use super::message::{MAX_PROVIDERS, Reply, Request};
use super::{announce, codec, lookup};
use crate::cbor::{ARRAY, BYTES, TEXT, UINT, put_head, take_head};
use crate::model::record::Provider;
use crate::transport::envelope::{self, Envelope, PROTOCOL_VERSION, RequestId};

/// What the encoding of something read may have more than what it was read from: fields that were left out, and the
/// names of kinds.
const MORE: usize = 200;
/// The longest answer to a request that was not understood.
const LONGEST_REFUSAL: usize = 200;

/// Heads of CBOR items.
pub(crate) fn head(data: &[u8]) {
    for kind in [UINT, BYTES, TEXT, ARRAY] {
        let mut rest = data;
        let Some(value) = take_head(&mut rest, kind) else {
            assert_eq!(rest, data, "nothing is taken of what is not there");
            continue;
        };
        let mut written = Vec::new();
        put_head(&mut written, kind, value);
        assert!(written.len() <= data.len() - rest.len());
        assert_eq!(take_head(&mut &written[..], kind), Some(value));
    }
}

/// Requests, and that everything that reads some of them without a serializer reads the same.
pub(crate) fn request(data: &[u8]) {
    let read = codec::decode_any_request(data);
    if let Some(found) = announce::read(data) {
        assert_eq!(read.as_ref(), Some(&found));
    }
    if let Some(found) = lookup::read(data) {
        assert_eq!(read, Some(owned(found)));
    }
    let envelope = envelope::read(data);
    match codec::decode_request(data) {
        Ok((id, request)) => {
            assert_eq!(read.as_ref(), Some(&(id, request.clone())));
            assert_eq!(envelope, Some(Envelope { version: PROTOCOL_VERSION, id: Some(id) }));
            let written = codec::encode_request(id, &request);
            assert!(written.len() <= data.len() + MORE, "{} bytes of {}", written.len(), data.len());
            match &request {
                Request::Announce { .. } => assert!(announce::read(&written).is_some()),
                Request::Find { .. } | Request::Providers { .. } => assert!(lookup::read(&written).is_some()),
                _ => {}
            }
            assert_eq!(codec::decode_request(&written), Ok((id, request)));
        }
        Err(refusal) => {
            assert_eq!(read, None);
            assert_eq!(refusal.id, envelope.and_then(|envelope| envelope.id));
            assert!(refusal.error.message.len() < LONGEST_REFUSAL);
            let answer = codec::encode_reply(refusal.id, Err(&refusal.error));
            assert_eq!(codec::decode_reply(&answer), Some(Err(refusal.error)));
        }
    }
}

fn owned((id, lookup): (RequestId, Lookup<'_>)) -> (RequestId, Request) {
    let request = match lookup {
        Lookup::Find { query } => Request::Find { query: query.to_owned() },
        Lookup::Providers { id } => Request::Providers { id },
    };
    (id, request)
}

/// Replies. What is told of providers must be what a tracker can tell on.
pub(crate) fn reply(data: &[u8]) {
    let instead = envelope::too_large_reply(data);
    assert!(instead.len() < LONGEST_REFUSAL && matches!(codec::decode_reply(&instead), Some(Err(_))));
    let Some(reply) = codec::decode_reply(data) else { return };
    let written = codec::encode_reply(None, reply.as_ref());
    assert!(written.len() <= data.len() + MORE, "{} bytes of {}", written.len(), data.len());
    assert_eq!(codec::decode_reply(&written), Some(reply.clone()));
    if let Ok(Reply::Providers { providers }) = reply {
        told_on(&providers);
    }
}

fn told_on(providers: &[Provider]) {
    let mut reply = ProvidersReply::default();
    let mut fitted = Vec::new();
    for provider in providers {
        let encoded = EncodedPeer::new(&provider.peer, &provider.endpoints);
        if let Some(told) = encoded.told(true) {
            if !reply.push(told, provider.size, provider.complete) {
                break;
            }
            fitted.push(provider.clone());
        }
    }
    assert!(fitted.len() <= MAX_PROVIDERS);
    let header = reply.finish(RequestId(u64::MAX));
    assert_eq!(codec::decode_reply(&header), Some(Ok(Reply::Providers { providers: fitted })));
}
