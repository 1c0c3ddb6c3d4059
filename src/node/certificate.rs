//! How long a certificate on the host is valid.

/// From when to when a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: i64,
    pub(super) until: i64,
}

/// The validity of the first certificate of a PEM file, which also holds the key.
pub(super) fn validity(pem: &[u8]) -> Result<Validity, String> {
    for block in x509_parser::pem::Pem::iter_from_buffer(pem) {
        let block = block.map_err(|error| error.to_string())?;
        if block.label == "CERTIFICATE" {
            let certificate = block.parse_x509().map_err(|error| error.to_string())?;
            let validity = certificate.validity();
            return Ok(Validity { from: validity.not_before.timestamp(), until: validity.not_after.timestamp() });
        }
    }
    Err("no certificate is in it".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn what_is_no_certificate_is_said() {
        assert!(validity(b"").is_err());
        assert!(validity(b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n").is_err());
    }

    #[test]
    fn the_validity_of_a_real_certificate_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let authority = lab::pki::Authority::create(&folder.path().join("ca"), "kubernetes").unwrap();
        let subject = lab::pki::Subject { name: "system:node:k1", groups: &["system:nodes"], ..Default::default() };
        let lasts = std::time::Duration::from_secs(3 * 86_400);
        let now = Clock::system().unix().0;
        let pair = authority.sign(&folder.path().join("kubelet"), &subject, lasts).unwrap();
        // The kubelet's file has the key behind the certificate; the order does not matter.
        let mut pem = std::fs::read(&pair.key).unwrap();
        pem.extend(std::fs::read(&pair.cert).unwrap());
        let read = validity(&pem).unwrap();
        assert!((now + 3 * 86_400..now + 3 * 86_400 + 60).contains(&read.until), "{read:?} {now}");
        assert!((now - 61..=now).contains(&read.from), "{read:?} {now}");
    }
}
