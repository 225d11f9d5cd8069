//! Fuzz targets for headers from the network.

use bytes::Bytes;

use super::lookup::{EncodedPeer, Lookup, ProvidersReply};
use super::message::{MAX_PROVIDERS, Reply, Request};
use super::{announce, codec, lookup};
use crate::model::cbor::{ARRAY, BYTES, TEXT, UINT, put_head, take_head};
use crate::model::record::Provider;
use crate::transport::envelope::{self, EncodedRequest, RequestId};

/// Maximum growth of a message that is decoded and encoded again: omitted fields, and names of kinds.
const MAX_GROWTH: usize = 200;
/// Maximum size of the reply to a malformed request.
const MAX_REFUSAL: usize = 200;

/// Heads of CBOR items.
pub(crate) fn head(data: &[u8]) {
    for kind in [UINT, BYTES, TEXT, ARRAY] {
        let mut rest = data;
        let Some(value) = take_head(&mut rest, kind) else {
            assert_eq!(rest, data, "a failed read consumes nothing");
            continue;
        };
        let mut written = Vec::new();
        put_head(&mut written, kind, value);
        assert!(written.len() <= data.len() - rest.len());
        assert_eq!(take_head(&mut &written[..], kind), Some(value));
    }
}

/// Requests. All decoders return the same.
pub(crate) fn request(data: &[u8]) {
    let id = envelope::id_of(data);
    let request = match EncodedRequest::parse(Bytes::copy_from_slice(data)) {
        Ok(request) => request,
        Err(reply) => {
            assert!(reply.len() < MAX_REFUSAL && envelope::id_of(&reply) == id);
            assert!(matches!(codec::decode_reply(&reply), Some(Err(_))));
            return;
        }
    };
    assert_eq!(id, Some(request.id()));
    let any = codec::decode_any(&request);
    if let Some(decoded) = announce::decode(&request) {
        assert_eq!(any.as_ref(), Some(&decoded));
    }
    if let Some(decoded) = lookup::decode(&request) {
        assert_eq!(any, Some(owned(decoded)));
    }
    match codec::decode_request(&request) {
        Ok(decoded) => {
            assert_eq!(any.as_ref(), Some(&decoded));
            let written = codec::encode_request(request.id(), &decoded);
            assert!(written.len() <= data.len() + MAX_GROWTH, "{} bytes of {}", written.len(), data.len());
            let parsed = EncodedRequest::parse(written).expect("it was encoded here");
            let is_specialized = match &decoded {
                Request::Announce { .. } => announce::decode(&parsed).is_some(),
                Request::Find { .. } | Request::Providers { .. } => lookup::decode(&parsed).is_some(),
                _ => true,
            };
            assert!(is_specialized, "{decoded:?}");
            assert_eq!((parsed.id(), codec::decode_request(&parsed)), (request.id(), Ok(decoded)));
        }
        Err(error) => {
            assert_eq!(any, None);
            assert!(error.message.len() < MAX_REFUSAL);
            let reply = codec::encode_reply(id, Err(&error));
            assert_eq!(codec::decode_reply(&reply), Some(Err(error)));
        }
    }
}

fn owned(lookup: Lookup<'_>) -> Request {
    match lookup {
        Lookup::Find { query } => Request::Find { query: query.to_owned() },
        Lookup::Providers { id } => Request::Providers { id },
    }
}

/// Replies. A tracker can encode the providers in a decoded reply.
pub(crate) fn reply(data: &[u8]) {
    let replacement = envelope::too_large_reply(data);
    assert!(replacement.len() < MAX_REFUSAL && matches!(codec::decode_reply(&replacement), Some(Err(_))));
    let Some(reply) = codec::decode_reply(data) else { return };
    let written = codec::encode_reply(None, reply.as_ref());
    assert!(written.len() <= data.len() + MAX_GROWTH, "{} bytes of {}", written.len(), data.len());
    assert_eq!(codec::decode_reply(&written), Some(reply.clone()));
    if let Ok(Reply::Providers { providers }) = reply {
        encode_again(&providers);
    }
}

fn encode_again(providers: &[Provider]) {
    let mut reply = ProvidersReply::default();
    let mut fitted = Vec::new();
    for provider in providers {
        let encoded = EncodedPeer::new(&provider.peer, &provider.endpoints);
        if let Some(peer) = encoded.visible_to(true) {
            if !reply.push(peer, provider.size, provider.complete) {
                break;
            }
            fitted.push(provider.clone());
        }
    }
    assert!(fitted.len() <= MAX_PROVIDERS);
    let header = reply.finish(RequestId(u64::MAX));
    assert_eq!(codec::decode_reply(&header), Some(Ok(Reply::Providers { providers: fitted })));
}
