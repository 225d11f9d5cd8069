//! TLS 1.3 between nodes that prove who they are with their Ed25519 keys (RFC 8446, RFC 8032).
//!
//! Both sides send their raw public key (RFC 7250) in place of a certificate: an id is the hash of a key, so there is
//! nothing that an authority could add, and no parser of certificates that a remote could feed. The side that dials knows
//! whom it wants and talks to nobody else; the side that listens learns who came. A session that is resumed is one with
//! the same key.

use std::io;
use std::sync::Arc;

use enjambre_core::model::id::PeerId;
use enjambre_core::model::identity::{KeyPair, PublicKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, ClientSessionMemoryCache, Resumption};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    ServerConfig, SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::cutoff::CutOff;
use super::stream::{Secured, Socket, Stream};

/// What stands before the 32 bytes of an Ed25519 key: as a `SubjectPublicKeyInfo` and as PKCS #8 (RFC 8410).
const PUBLIC: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const SECRET: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// How many sessions each side keeps to resume them.
const SESSIONS: usize = 256;

/// What a node needs to prove who it is, and to see who others are.
#[derive(Clone)]
pub(crate) struct Security {
    id: PeerId,
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl std::fmt::Debug for Security {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Security").finish_non_exhaustive()
    }
}

impl Security {
    /// For the node that has this key.
    pub(crate) fn new(key: &KeyPair) -> Self {
        let provider = Arc::new(provider());
        let pkcs8 = [&SECRET[..], &key.secret()].concat();
        let signing = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8));
        let signing = signing.expect("any 32 bytes are the secret of an Ed25519 key");
        let public = signing.public_key().expect("an Ed25519 key tells its public half").to_vec();
        let shown = Arc::new(CertifiedKey::new(vec![CertificateDer::from(public)], signing));
        let verifier = Arc::new(Verifier { provider: Arc::clone(&provider) });

        let only = "the provider has TLS 1.3";
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect(only)
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::clone(&shown))));
        // The name is the id, which nobody else needs to read.
        client.enable_sni = false;
        client.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(SESSIONS)));
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect(only)
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(shown)));
        server.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        server.send_tls13_tickets = 1;
        Self { id: key.peer_id(), acceptor: Arc::new(server).into(), connector: Arc::new(client).into() }
    }

    /// The id of this node.
    pub(crate) const fn id(&self) -> PeerId {
        self.id
    }

    /// Shakes hands with whoever has connected. The caller sets the time limit.
    pub(crate) async fn accept(&self, stream: TcpStream) -> Result<Stream, CutOff> {
        let socket = Arc::new(stream);
        let tls = self.acceptor.accept(Socket::new(Arc::clone(&socket))).await.map_err(explain)?;
        let peer = peer(tls.get_ref().1)?;
        Ok(Stream::Secure(Box::new(Secured { tls: TlsStream::Server(tls), socket, peer })))
    }

    /// Shakes hands with the node that was dialled, which must be the one with this id. The caller sets the time limit.
    pub(crate) async fn connect(&self, stream: TcpStream, wanted: PeerId) -> Result<Stream, CutOff> {
        let socket = Arc::new(stream);
        let connecting = self.connector.connect(name_of(wanted), Socket::new(Arc::clone(&socket)));
        let tls = connecting.await.map_err(explain)?;
        let peer = peer(tls.get_ref().1)?;
        // Also where a session was resumed, and nothing was verified anew.
        check(wanted, peer).map_err(|Another { wanted, found }| CutOff::Another { wanted, found })?;
        Ok(Stream::Secure(Box::new(Secured { tls: TlsStream::Client(tls), socket, peer })))
    }
}

/// TLS 1.3 alone; where the processor does AES, that is faster than the other cipher.
fn provider() -> CryptoProvider {
    use ring::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    #[cfg(target_arch = "x86_64")]
    let has_aes = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has_aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has_aes = false;
    let mut cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384];
    cipher_suites.insert(if has_aes { 2 } else { 0 }, TLS13_CHACHA20_POLY1305_SHA256);
    CryptoProvider { cipher_suites, ..ring::default_provider() }
}

/// The name under which rustls knows a node, and keeps its sessions: a label has at most 63 characters.
fn name_of(id: PeerId) -> ServerName<'static> {
    let digits = id.to_string();
    let (front, back) = digits.split_at(32);
    ServerName::try_from(format!("{front}.{back}")).expect("hexadecimal digits are a name")
}

fn id_of(name: &ServerName<'_>) -> Option<PeerId> {
    let ServerName::DnsName(name) = name else { return None };
    name.as_ref().replace('.', "").parse().ok()
}

/// Who has the key that stands in the place of a certificate.
fn owner(key: &CertificateDer<'_>) -> Result<PeerId, Error> {
    let public = key.as_ref().strip_prefix(&PUBLIC).and_then(|bytes| bytes.try_into().ok());
    let public: [u8; 32] = public.ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
    Ok(PublicKey::from_bytes(public).peer_id())
}

/// Who is at the other end of a connection on which the hands are shaken.
fn peer(connection: &CommonState) -> Result<PeerId, CutOff> {
    const NOBODY: CutOff = CutOff::Protocol("it did not prove who it is");
    let key = connection.peer_certificates().and_then(<[_]>::first).ok_or(NOBODY)?;
    owner(key).map_err(|_| NOBODY)
}

/// Somebody else answered.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("{found} answered, not {wanted}")]
struct Another {
    wanted: PeerId,
    found: PeerId,
}

fn check(wanted: PeerId, found: PeerId) -> Result<(), Another> {
    if wanted == found { Ok(()) } else { Err(Another { wanted, found }) }
}

/// What a failed handshake means.
fn explain(error: io::Error) -> CutOff {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(CertificateError::Other(OtherError(other)))) => {
            match other.downcast_ref::<Another>() {
                Some(&Another { wanted, found }) => CutOff::Another { wanted, found },
                None => CutOff::Io(error),
            }
        }
        Some(Error::InvalidMessage(_)) => CutOff::Protocol("it does not speak TLS"),
        Some(Error::PeerIncompatible(_) | Error::AlertReceived(_) | Error::NoCertificatesPresented) => {
            CutOff::Protocol("it does not speak TLS 1.3 with the raw key of a node")
        }
        _ => CutOff::Io(error),
    }
}

/// Takes the raw Ed25519 key of any node from whoever dials, and of the node that was dialled from whoever answers.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
    }
}

/// It is never negotiated.
fn older_tls() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2 is not spoken".to_owned()))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let wanted = id_of(name).ok_or_else(|| Error::General("a node is dialled by its id".to_owned()))?;
        let other =
            |another| Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(another))));
        check(wanted, owner(key)?).map_err(other)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        older_tls()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        owner(key)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        older_tls()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
#[path = "secure_tests.rs"]
mod tests;
