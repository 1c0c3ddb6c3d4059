//! One connection to one member. TLS is made here and not by the client, so that the certificate that the member shows is seen without
//! a second handshake: handshakes are most of what an observation costs.

use super::{ClientFiles, FilesError, host};
use crate::observe::certificate::expiry;
use backon::{ConstantBuilder, Retryable};
use etcd_client::{Channel, Client};
use hyper_util::rt::TokioIo;
use quorum_safety::{Fact, UnixSeconds};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;

/// How often files that do not belong together are read again, and with what pause: for about a second.
const TORN: (usize, Duration) = (10, Duration::from_millis(100));
/// etcd's port for clients, where a URL names none.
const PORT: u16 = 2379;

/// What a client of etcd shows and trusts.
#[derive(Clone)]
pub(crate) struct Tls(TlsConnector);

impl Tls {
    /// Reads the files; anew for each look, since `kubeadm upgrade` renews them in place: who comes between two of its writes meets half a
    /// file, or a certificate with the key of another. Such are read again.
    pub(crate) async fn read(files: &ClientFiles) -> Result<Self, FilesError> {
        let (times, pause) = TORN;
        let again = ConstantBuilder::default().with_delay(pause).with_max_times(times);
        let torn = |error: &FilesError| matches!(error, FilesError::Unusable { .. });
        (|| async { Self::read_once(files) }).retry(again).when(torn).await
    }

    fn read_once(files: &ClientFiles) -> Result<Self, FilesError> {
        let wrong = |name: &str, what: String| FilesError::Unusable { path: files.folder().join(name), what };
        let parsed = |name: &str, error: rustls::pki_types::pem::Error| wrong(name, error.to_string());
        let certificates = |name: &str| -> Result<Vec<CertificateDer<'static>>, FilesError> {
            let pem = files.read(name)?;
            let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            let list = list.map_err(|error| parsed(name, error))?;
            // Without a certificate in it nobody would be trusted, and every member would seem to be somebody else.
            if list.is_empty() { Err(wrong(name, "it holds no certificate".to_owned())) } else { Ok(list) }
        };
        let mut roots = RootCertStore::empty();
        for authority in certificates("ca.crt")? {
            roots.add(authority).map_err(|error| wrong("ca.crt", error.to_string()))?;
        }
        let key = PrivateKeyDer::from_pem_slice(&files.read("healthcheck-client.key")?)
            .map_err(|error| parsed("healthcheck-client.key", error))?;
        let mut config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates("healthcheck-client.crt")?, key)
            .map_err(|error| wrong("healthcheck-client.crt", error.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }
}

/// A member that has answered the handshake.
#[derive(Clone)]
pub(crate) struct Connection {
    /// What it is asked through. It never connects again: a connection that breaks between two samples is an answer.
    pub(crate) client: Client,
    /// When the certificate that it showed expires.
    pub(crate) certificate_expires: Fact<UnixSeconds>,
}

/// Connects to the member at a client URL.
///
/// # Errors
/// When it does not answer in time, or is not who its certificate has to name; in words.
pub(crate) async fn connect(tls: &Tls, url: &str, deadline: Duration) -> Result<Connection, String> {
    match tokio::time::timeout(deadline, open(tls, url)).await {
        Ok(opened) => opened,
        Err(_) => Err(format!("no answer in {} s", deadline.as_secs_f32())),
    }
}

async fn open(tls: &Tls, url: &str) -> Result<Connection, String> {
    let uri: http::Uri = url.parse().map_err(|error| format!("not a URL: {error}"))?;
    if uri.scheme_str() != Some("https") {
        return Err("not an https URL: kubeadm's etcd has TLS".to_owned());
    }
    let (host, authority) = (host(url).ok_or("it names no host")?, uri.authority().ok_or("it names no host")?);
    let stream = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(PORT)))
        .await
        .map_err(|error| format!("no connection: {error}"))?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
    let stream = tls.0.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate_expires = shown.ok_or_else(|| "it showed no certificate".to_owned()).and_then(|der| expiry(der));
    let mut once = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = once.take().ok_or_else(|| std::io::Error::other("the connection was lost"));
        std::future::ready(stream)
    });
    // TLS is below: as far as HTTP/2 goes this is a plain connection.
    let channel = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|error| super::words(&error))?
        .connect_with_connector(connector)
        .await
        .map_err(|error| super::words(&error))?;
    let client = Client::from_channel(Channel::Tonic(channel), None).await.map_err(|error| super::words(&error))?;
    Ok(Connection { client, certificate_expires: certificate_expires.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::time::Instant;

    /// A certificate that signs itself, and its key.
    fn pair() -> (String, String) {
        let signed = rcgen::generate_simple_self_signed(vec!["etcd".to_owned()]).unwrap();
        (signed.cert.pem(), signed.signing_key.serialize_pem())
    }

    fn write(folder: &Path, name: &str, text: &str) {
        std::fs::write(folder.join(name), text).unwrap();
    }

    /// Reads while somebody writes these files, one after the other, 300 ms apart.
    fn read_meanwhile(folder: &Path, writes: Vec<(&'static str, String)>) -> Result<(), FilesError> {
        drop(rustls::crypto::ring::default_provider().install_default());
        let (files, folder) = (ClientFiles::in_folder(folder), folder.to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let writer = async {
                for (name, text) in writes {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    write(&folder, name, &text);
                }
            };
            tokio::join!(Tls::read(&files), writer).0.map(drop)
        })
    }

    #[test]
    fn files_that_are_rewritten_meanwhile_are_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let ((old, old_key), (new, new_key)) = (pair(), pair());
        write(folder, "ca.crt", &old);
        // The new certificate beside the old key.
        write(folder, "healthcheck-client.crt", &new);
        write(folder, "healthcheck-client.key", &old_key);
        read_meanwhile(folder, vec![("healthcheck-client.key", new_key.clone())]).unwrap();
        // Half a certificate, then nothing yet of the key.
        write(folder, "healthcheck-client.crt", &new[..new.len() / 2]);
        write(folder, "healthcheck-client.key", "");
        let rest = vec![("healthcheck-client.crt", new.clone()), ("healthcheck-client.key", new_key.clone())];
        read_meanwhile(folder, rest).unwrap();
        write(folder, "ca.crt", "");
        read_meanwhile(folder, vec![("ca.crt", new)]).unwrap();
    }

    #[test]
    fn files_that_never_belong_together_are_given_up_and_those_that_are_missing_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let since = Instant::now();
        assert!(matches!(read_meanwhile(folder, Vec::new()), Err(FilesError::Read { .. })));
        assert!(since.elapsed() < Duration::from_millis(500), "{:?}", since.elapsed());
        let ((certificate, _), (_, key)) = (pair(), pair());
        write(folder, "ca.crt", &certificate);
        write(folder, "healthcheck-client.crt", &certificate);
        write(folder, "healthcheck-client.key", &key);
        let since = Instant::now();
        let error = read_meanwhile(folder, Vec::new()).unwrap_err();
        assert!(error.to_string().contains("healthcheck-client.crt"), "{error}");
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    }
}
