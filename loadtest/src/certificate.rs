//! A certificate for one gateway, made for the run, and the settings of clients that trust it and no other.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};

use crate::Result;

/// The name in the certificate, for which every client asks.
pub(crate) const NAME: &str = "localhost";

/// A self-signed certificate and its key.
pub(crate) struct Certificate {
    issued: rcgen::CertifiedKey<rcgen::KeyPair>,
}

impl Certificate {
    /// Makes one.
    pub(crate) fn issue() -> Result<Self> {
        Ok(Self { issued: rcgen::generate_simple_self_signed([NAME.to_owned()])? })
    }

    /// Writes both as PEM files.
    pub(crate) fn write(&self, cert: &Path, key: &Path) -> Result<()> {
        std::fs::write(cert, self.issued.cert.pem())?;
        std::fs::write(key, self.issued.signing_key.serialize_pem())?;
        Ok(())
    }

    /// What all clients of the gateway share. Nobody resumes an earlier session, as the clients stand for different users.
    pub(crate) fn trust(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issued.cert.der().clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}
