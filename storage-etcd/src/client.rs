//! Requests to the members of the cluster: choice of the member, authentication and timeouts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use enjambre_core::model::time::human;
use enjambre_core::storage::password::password;
use enjambre_core::{Place, StorageError};
use prost::Message;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::failure::Failure;
use crate::messages::{AUTHENTICATE, AuthenticateRequest, AuthenticateResponse};
use crate::settings::EtcdSettings;

/// The environment variable of `etcdctl`.
const DEFAULT_PASSWORD_ENV: &str = "ETCDCTL_PASSWORD";
/// The maximum size of a reply.
pub(crate) const REPLY_BYTES: usize = 40 * 1024 * 1024;

/// The user and the password.
pub(crate) struct Login(AuthenticateRequest);

impl Login {
    /// Reads the password. Blocks.
    pub(crate) fn new(settings: &EtcdSettings, place: &Place) -> Result<Option<Self>, StorageError> {
        let (env, file) = (settings.password_env.as_deref(), settings.password_file.as_deref());
        let password = password(env, file, DEFAULT_PASSWORD_ENV, place)?;
        let missing = || {
            let cause = "it has no password; set password_file or password_env";
            StorageError::backend(format!("log in as user {:?}", settings.user), cause)
        };
        let Some(name) = settings.user.clone() else { return Ok(None) };
        Ok(Some(Self(AuthenticateRequest { name, password: password.ok_or_else(missing)? })))
    }
}

/// A client of all members.
pub(crate) struct Client {
    /// The URLs and connections, which are established on demand.
    members: Vec<(String, Channel)>,
    /// The member of the last successful request.
    preferred: AtomicUsize,
    login: Option<Login>,
    /// The token of the login.
    token: Mutex<Option<AsciiMetadataValue>>,
    timeout: Duration,
}

impl Client {
    /// Must be called in a Tokio runtime.
    pub(crate) fn new(endpoints: &[Endpoint], login: Option<Login>, timeout: Duration) -> Self {
        let member = |endpoint: &Endpoint| {
            (endpoint.uri().to_string().trim_end_matches('/').to_owned(), endpoint.connect_lazy())
        };
        let members = endpoints.iter().map(member).collect();
        Self { members, preferred: AtomicUsize::new(0), login, token: Mutex::default(), timeout }
    }

    /// Sends a request to the preferred member, and then to the next ones as long as none of them has received it.
    pub(crate) async fn call<Q, R>(&self, method: &'static str, request: &Q) -> Result<R, Failure>
    where
        Q: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        let count = self.members.len();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut tried = 1;
        loop {
            let index = (first + tried - 1) % count;
            let outcome = self.call_member(index, method, request).await;
            let next = match &outcome {
                Err(failure) if !failure.is_refusal() && !failure.is_large_reply() => (index + 1) % count,
                _ => index,
            };
            self.preferred.store(next, Ordering::Relaxed);
            match outcome {
                Err(failure) if tried < count && failure.is_not_sent() => tried += 1,
                outcome => return outcome,
            }
        }
    }

    async fn call_member<Q, R>(&self, index: usize, method: &'static str, request: &Q) -> Result<R, Failure>
    where
        Q: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        let Some(login) = &self.login else { return self.send(index, method, request.clone(), None).await };
        let mut expired = None;
        loop {
            let token = self.token(index, login, expired.as_ref()).await?;
            match self.send(index, method, request.clone(), Some(&token)).await {
                Err(failure) if expired.is_none() && failure.is_token_invalid() => expired = Some(token),
                outcome => return outcome,
            }
        }
    }

    /// Returns a token other than `expired`. Logs in if there is none.
    async fn token(
        &self,
        index: usize,
        login: &Login,
        expired: Option<&AsciiMetadataValue>,
    ) -> Result<AsciiMetadataValue, Failure> {
        let mut token = self.token.lock().await;
        if let Some(token) = token.as_ref().filter(|token| Some(*token) != expired) {
            return Ok(token.clone());
        }
        let reply: AuthenticateResponse = self.send(index, AUTHENTICATE, login.0.clone(), None).await?;
        let parsed = reply.token.parse();
        let parsed: AsciiMetadataValue =
            parsed.map_err(|_| self.failure(index, Status::internal("the server sent an invalid token")))?;
        *token = Some(parsed.clone());
        Ok(parsed)
    }

    async fn send<Q, R>(
        &self,
        index: usize,
        method: &'static str,
        message: Q,
        token: Option<&AsciiMetadataValue>,
    ) -> Result<R, Failure>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        let mut request = Request::new(message);
        if let Some(token) = token {
            request.metadata_mut().insert("token", token.clone());
        }
        let exchange = async {
            let mut grpc = Grpc::new(self.members[index].1.clone()).max_decoding_message_size(REPLY_BYTES);
            grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
            grpc.unary(request, PathAndQuery::from_static(method), ProstCodec::<Q, R>::default()).await
        };
        let late = |_| Err(Status::deadline_exceeded(format!("no reply within {}", human(self.timeout))));
        let reply = timeout(self.timeout, exchange).await.unwrap_or_else(late);
        reply.map(|reply| reply.into_inner()).map_err(|status| self.failure(index, status))
    }

    fn failure(&self, index: usize, status: Status) -> Failure {
        Failure { endpoint: self.members[index].0.clone(), status }
    }
}
