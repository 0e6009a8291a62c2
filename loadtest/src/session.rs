//! A client's TLS session, which knows no socket: the caller reads and writes, so that a TLS client takes as many system
//! calls as a plain one.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use crate::Result;
use crate::certificate::NAME;

/// The client's end of a TLS connection.
#[derive(Debug)]
pub(crate) struct Session {
    connection: ClientConnection,
}

impl Session {
    /// A session whose handshake has not begun.
    pub(crate) fn new(trust: &Arc<ClientConfig>) -> Result<Self> {
        let connection = ClientConnection::new(Arc::clone(trust), ServerName::try_from(NAME)?)?;
        Ok(Self { connection })
    }

    /// Sends `bytes`; before the end of the handshake begins it instead, and the bytes follow as soon as they may.
    pub(crate) fn write(&mut self, bytes: &[u8], socket: &mut impl Write) -> io::Result<()> {
        self.connection.writer().write_all(bytes)?;
        self.flush(socket)
    }

    /// Reads from a blocking `socket`, through the handshake if need be.
    pub(crate) fn read(&mut self, buffer: &mut [u8], socket: &mut (impl Read + Write)) -> io::Result<usize> {
        rustls::Stream::new(&mut self.connection, socket).read(buffer)
    }

    /// Appends to `plain` what is in `records`, the next bytes from `socket`; the beginning of a cut record is kept.
    pub(crate) fn decipher(
        &mut self,
        mut records: &[u8],
        plain: &mut Vec<u8>,
        socket: &mut impl Write,
    ) -> io::Result<()> {
        // in pieces, as the session takes no more than a record before it is processed; 0 after the peer's goodbye
        while !records.is_empty() && self.connection.read_tls(&mut records)? > 0 {
            let state = self.connection.process_new_packets();
            let state = state.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
            let kept = plain.len();
            plain.resize(kept + state.plaintext_bytes_to_read(), 0);
            self.connection.reader().read_exact(plain.get_mut(kept..).unwrap_or_default())?;
        }
        self.flush(socket)
    }

    fn flush(&mut self, socket: &mut impl Write) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(socket) {
                // what a full socket did not take goes with the next write
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => drop(other?),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ServerConfig, ServerConnection};

    use crate::certificate::Certificate;

    fn server(certificate: &Certificate) -> ServerConnection {
        let directory = tempfile::tempdir().unwrap();
        let (cert, key) = (directory.path().join("cert"), directory.path().join("key"));
        certificate.write(&cert, &key).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(cert).unwrap()],
                PrivateKeyDer::from_pem_file(key).unwrap(),
            )
            .unwrap();
        ServerConnection::new(Arc::new(config)).unwrap()
    }

    /// What the server has to say.
    fn records(server: &mut ServerConnection) -> Vec<u8> {
        let mut out = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut out).unwrap();
        }
        out
    }

    fn hear(server: &mut ServerConnection, mut records: &[u8]) {
        while !records.is_empty() {
            server.read_tls(&mut records).unwrap();
            server.process_new_packets().unwrap();
        }
    }

    #[test]
    fn speaks_after_the_handshake_and_reads_records_whole_and_cut() {
        let certificate = Certificate::issue().unwrap();
        let mut server = server(&certificate);
        let mut session = Session::new(&certificate.trust().unwrap()).unwrap();
        let (mut out, mut plain) = (Vec::new(), Vec::new());
        session.write(b"GET /", &mut out).unwrap();
        while server.is_handshaking() {
            hear(&mut server, &std::mem::take(&mut out));
            session.decipher(&records(&mut server), &mut plain, &mut out).unwrap();
        }
        hear(&mut server, &out);
        let mut heard = [0; 5];
        server.reader().read_exact(&mut heard).unwrap();
        assert_eq!((&heard, plain.len()), (b"GET /", 0));

        let said: Vec<u8> = (0..60_000u32).map(|index| index as u8).collect();
        for piece in [usize::MAX, 4096, 33, 1] {
            for part in said.chunks(20_000) {
                server.writer().write_all(part).unwrap();
                for cut in records(&mut server).chunks(piece) {
                    session.decipher(cut, &mut plain, &mut out).unwrap();
                }
            }
            assert_eq!(std::mem::take(&mut plain), said, "in pieces of {piece}");
        }

        server.send_close_notify();
        let goodbye = [records(&mut server), b"and more".to_vec()].concat();
        session.decipher(&goodbye, &mut plain, &mut out).unwrap();
        assert!(plain.is_empty());
    }

    #[test]
    fn trusts_one_certificate() {
        let mut server = server(&Certificate::issue().unwrap());
        let mut session = Session::new(&Certificate::issue().unwrap().trust().unwrap()).unwrap();
        let mut out = Vec::new();
        session.write(b"GET /", &mut out).unwrap();
        hear(&mut server, &out);
        let error = session.decipher(&records(&mut server), &mut Vec::new(), &mut out).unwrap_err();
        assert!(error.to_string().contains("certificate"), "{error}");
    }
}
