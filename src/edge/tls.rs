//! wss: certificates from PEM files, read again when the files change, without dropping a socket.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::client::Handshaking;
use crate::config::TlsFiles;
use crate::metrics::Metrics;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A certificate or key could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{variable}: {path}: {words}")]
pub struct TlsError {
    variable: &'static str,
    path: String,
    words: String,
}

/// The certificate that is shown, and how to show it.
pub struct Certificates {
    files: TlsFiles,
    provider: Arc<CryptoProvider>,
    current: Arc<Current>,
    acceptor: TlsAcceptor,
    /// What the files held when the current certificate was read.
    shown: Mutex<Content>,
}

/// What both files held.
type Content = (Vec<u8>, Vec<u8>);

struct Current {
    key: RwLock<Arc<CertifiedKey>>,
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.key.read()))
    }
}

impl Certificates {
    /// Reads the files.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let content = read(files)?;
        let key = certified(&provider, files, &content)?;
        let current = Arc::new(Current { key: RwLock::new(Arc::new(key)) });
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::cert(files, error))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self { files: files.clone(), provider, current, acceptor, shown: Mutex::new(content) })
    }

    /// The TLS handshake; the caller sets its deadline.
    pub(super) async fn accept(&self, socket: Handshaking) -> io::Result<TlsStream<Handshaking>> {
        self.acceptor.accept(socket).await
    }

    /// Shows the new certificate from the moment both files are whole again; until then the old one. Existing
    /// connections go on as they are.
    pub async fn watch(&self, metrics: &Metrics, stop: CancellationToken) {
        let mut last_error = String::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            // Small files, seldom: a blocking read is fine here.
            let loaded = read(&self.files).and_then(|content| {
                if content == *self.shown.lock() {
                    return Ok(None);
                }
                certified(&self.provider, &self.files, &content).map(|key| Some((content, key)))
            });
            match loaded {
                Ok(None) => last_error.clear(),
                Ok(Some((content, key))) => {
                    *self.current.key.write() = Arc::new(key);
                    *self.shown.lock() = content;
                    last_error.clear();
                    tracing::info!(cert = %self.files.cert.display(), "certificate reloaded");
                }
                // Files are often replaced one after the other; what stays wrong is said once.
                Err(error) => {
                    let words = error.to_string();
                    if words != last_error {
                        metrics.tls_reload_errors.inc();
                        tracing::warn!(%error, "certificate not reloaded, the old one is still shown");
                        last_error = words;
                    }
                }
            }
        }
    }
}

impl TlsError {
    fn cert(files: &TlsFiles, words: impl fmt::Display) -> Self {
        Self { variable: "MOONGATE_TLS_CERT", path: files.cert.display().to_string(), words: words.to_string() }
    }

    fn key(files: &TlsFiles, words: impl fmt::Display) -> Self {
        Self { variable: "MOONGATE_TLS_KEY", path: files.key.display().to_string(), words: words.to_string() }
    }
}

fn read(files: &TlsFiles) -> Result<Content, TlsError> {
    let cert = std::fs::read(&files.cert).map_err(|error| TlsError::cert(files, error))?;
    let key = std::fs::read(&files.key).map_err(|error| TlsError::key(files, error))?;
    Ok((cert, key))
}

fn certified(provider: &CryptoProvider, files: &TlsFiles, (cert, key): &Content) -> Result<CertifiedKey, TlsError> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(cert).collect::<Result<_, _>>().map_err(|error| TlsError::cert(files, error))?;
    if chain.is_empty() {
        return Err(TlsError::cert(files, "holds no PEM certificate"));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::key(files, "holds no PEM private key"))?;
    // Also checks that the two belong together.
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InvalidCertificate(_) => TlsError::cert(files, error),
        _ => TlsError::key(files, error),
    })
}
