//! Opens connections to a store: TCP, with TLS for https, under one time-out.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Name resolution or TCP.
    #[error("{0}")]
    Tcp(String),
    /// Nothing within the time allowed.
    #[error("no connection within {0:?}")]
    TimedOut(Duration),
    /// The server is not who it should be; the same try would fail again.
    #[error("the server's certificate is not accepted: {0}")]
    Certificate(rustls::CertificateError),
    /// Any other failure of TLS, such as a server that speaks plain http.
    #[error("TLS: {0}")]
    Tls(io::Error),
}

/// Makes the settings of TLS. `ca_pem` is trusted besides the public authorities.
///
/// # Errors
/// A sentence on what is wrong with `ca_pem`.
pub(crate) fn tls_config(ca_pem: Option<&[u8]>, insecure: bool) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the provider supports the default protocol versions");
    if insecure {
        let verifier = Arc::new(AnyCertificate(provider));
        return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
    }
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(pem) = ca_pem {
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|e| format!("the CA certificates are not PEM: {e}"))?;
            roots.add(certificate).map_err(|e| format!("a CA certificate is not usable: {e}"))?;
        }
        if roots.len() == before {
            return Err("there is no certificate among the CA certificates".into());
        }
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Accepts every certificate, because the user asked for it; signatures are still checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Opens connections by the scheme of the address.
#[derive(Clone)]
pub(crate) struct Connector {
    tcp: HttpConnector,
    tls: TlsConnector,
    timeout: Duration,
    /// Stands for the network in tests under paused time, which real sockets would upset.
    #[cfg(test)]
    pub(crate) fake: Option<Arc<dyn Fn() -> tokio::io::DuplexStream + Send + Sync>>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Connector {
    /// Connections with `tls` for https that stand within `timeout`.
    pub(crate) fn new(tls: ClientConfig, timeout: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // A host of several addresses, of which one is dead: they share the time.
        tcp.set_connect_timeout(Some(timeout));
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        Connector {
            tcp,
            tls: TlsConnector::from(Arc::new(tls)),
            timeout,
            #[cfg(test)]
            fake: None,
        }
    }
}

async fn open(mut tcp: HttpConnector, tls: TlsConnector, uri: Uri) -> Result<Io, ConnectError> {
    let https = uri.scheme_str() == Some("https");
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let stream = tcp.call(uri).await.map_err(|e| ConnectError::Tcp(chain(&e)))?;
    if !https {
        return Ok(Io::Plain(stream));
    }
    let name = ServerName::try_from(host).map_err(|e| ConnectError::Tcp(e.to_string()))?;
    match tls.connect(name, stream.into_inner()).await {
        Ok(stream) => Ok(Io::Tls(Box::new(TokioIo::new(stream)))),
        Err(error) => {
            let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
            Err(match inner {
                Some(rustls::Error::InvalidCertificate(why)) => ConnectError::Certificate(why.clone()),
                _ => ConnectError::Tls(error),
            })
        }
    }
}

/// An error and its causes as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

impl Service<Uri> for Connector {
    type Response = Io;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Io, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        #[cfg(test)]
        if let Some(fake) = &self.fake {
            let stream = fake();
            return Box::pin(async { Ok(Io::Fake(TokioIo::new(stream))) });
        }
        let (tcp, tls, timeout) = (self.tcp.clone(), self.tls.clone(), self.timeout);
        Box::pin(async move {
            match tokio::time::timeout(timeout, open(tcp, tls, uri)).await {
                Ok(result) => result,
                Err(_) => Err(ConnectError::TimedOut(timeout)),
            }
        })
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) enum Io {
    /// http
    Plain(TokioIo<TcpStream>),
    /// https
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
    /// A pipe to the test.
    #[cfg(test)]
    Fake(TokioIo<tokio::io::DuplexStream>),
}

impl Connection for Io {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

macro_rules! each {
    ($self:expr, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Io::Plain($io) => $call,
            Io::Tls($io) => $call,
            #[cfg(test)]
            Io::Fake($io) => $call,
        }
    };
}

impl Read for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl Write for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_shutdown(cx))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
            #[cfg(test)]
            Io::Fake(io) => io.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }
}
