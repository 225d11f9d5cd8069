//! Requests and replies over ZeroMQ: a ROUTER behind each listener, a DEALER behind each connection that is made.
//!
//! Frames are `[header]` or `[header][payload]`; the empty delimiter of a REQ is accepted and returned.

mod connection;
mod inner;
mod link;
mod listener;
mod reply;

use std::sync::Arc;

use async_trait::async_trait;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::transport::budget::ReplyBudget;
use enjambre_core::transport::error::TransportError;
use enjambre_core::transport::{Connection, Listener, Transport};

use crate::guard::admission::Admission;
use crate::guard::cutoff::CutOffLog;
use crate::open_files;
use crate::settings::{InvalidSetting, TransportSettings};
use connection::ZmqConnection;
use inner::Doorway;
use listener::ZmqListener;

const SCHEME: &str = "zmq";

/// What all listeners and connections of a transport share.
#[derive(Debug)]
struct Shared {
    settings: TransportSettings,
    admission: Arc<Admission>,
    budget: Arc<ReplyBudget>,
    log: CutOffLog,
    doorway: Doorway,
}

/// The transport with the scheme `zmq`. Its limits hold for all its listeners together.
#[derive(Debug)]
pub struct ZmqTransport {
    shared: Arc<Shared>,
}

impl ZmqTransport {
    /// A transport with these settings. Fails where they make no sense.
    pub fn new(settings: TransportSettings) -> Result<Self, InvalidSetting> {
        settings.validate()?;
        let connections = settings.connections.min(open_files::connections_allowed());
        Ok(Self {
            shared: Arc::new(Shared {
                admission: Admission::new(connections, settings.connections_per_address),
                budget: ReplyBudget::new(settings.queued_in_all, settings.queued_per_connection),
                log: CutOffLog::default(),
                doorway: Doorway::default(),
                settings,
            }),
        })
    }

    /// How many connections are accepted at the moment.
    pub fn connections(&self) -> usize {
        self.shared.admission.connections()
    }

    /// How many bytes of replies are reserved or wait to be sent at the moment.
    pub fn queued_reply_bytes(&self) -> usize {
        self.shared.budget.taken()
    }
}

fn check(endpoint: &Endpoint) -> Result<(), TransportError> {
    if endpoint.scheme() == SCHEME {
        return Ok(());
    }
    let problem = format!("this transport serves {SCHEME}:// only");
    Err(TransportError::InvalidEndpoint { endpoint: endpoint.clone(), problem })
}

#[async_trait]
impl Transport for ZmqTransport {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
        check(endpoint)?;
        let problem = if endpoint.port() == 0 {
            Some("port 0 can be listened at, but not dialled")
        } else if endpoint.is_unspecified() {
            Some("this address means all of a machine's own; dial one of them")
        } else {
            None
        };
        if let Some(problem) = problem {
            let problem = problem.to_owned();
            return Err(TransportError::InvalidEndpoint { endpoint: endpoint.clone(), problem });
        }
        Ok(Arc::new(ZmqConnection::new(Arc::clone(&self.shared), endpoint.clone())))
    }

    async fn bind(&self, endpoint: &Endpoint) -> Result<Arc<dyn Listener>, TransportError> {
        check(endpoint)?;
        match ZmqListener::bind(Arc::clone(&self.shared), endpoint).await {
            Ok(listener) => Ok(Arc::new(listener)),
            Err(source) => Err(TransportError::Bind { endpoint: endpoint.clone(), source }),
        }
    }
}
