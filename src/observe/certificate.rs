//! When the certificates that servers really serve expire: read from a handshake, not from a file.

use quorum_safety::UnixSeconds;

/// When a DER certificate expires.
///
/// # Errors
/// When it is not an X.509 certificate.
pub fn expiry(der: &[u8]) -> Result<UnixSeconds, String> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(der).map_err(|error| format!("not a certificate: {error}"))?;
    Ok(UnixSeconds(certificate.validity().not_after.timestamp()))
}

/// The expiry of the certificate that this answer's server showed.
pub(crate) fn served(answer: &reqwest::Response) -> Result<UnixSeconds, String> {
    let info = answer.extensions().get::<reqwest::tls::TlsInfo>().ok_or("no TLS on the connection")?;
    expiry(info.peer_certificate().ok_or("the server showed no certificate")?)
}

/// An error of reqwest with its causes, on one line.
pub(crate) fn words(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
