//! Certificates laid out as kubeadm does: CA, server and client pairs as PEM files, keys 0600.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};

/// How long kubeadm's certificates last.
pub const ONE_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// The private key, PKCS#8 PEM.
    pub key: PathBuf,
}

/// Who a leaf certificate is for.
#[derive(Clone, Debug, Default)]
pub struct Subject<'a> {
    /// The common name: the user name to Kubernetes.
    pub name: &'a str,
    /// Organisations: the groups to Kubernetes.
    pub groups: &'a [&'a str],
    /// DNS names and addresses. With any, it is a server certificate (and a client's: etcd peers are both).
    pub sans: Vec<String>,
}

/// A certificate authority with its files.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    cert: PathBuf,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key stays out.
        f.debug_struct("Authority").field("cert", &self.cert).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes one that lasts ten years, in `NAME.crt` and `NAME.key`.
    ///
    /// `name` is the path without its ending, as in `pki/etcd/ca`.
    pub fn create(name: &Path, common_name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(common_name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        set_validity(&mut params, ONE_YEAR * 10)?;
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let files = write_pair(name, &issuer.pem(), &issuer.key().serialize_pem())?;
        Ok(Self { issuer, cert: files.cert })
    }

    /// The CA certificate file.
    pub fn cert(&self) -> &Path {
        &self.cert
    }

    /// Signs a certificate valid for `lasts` from now, in `NAME.crt` and `NAME.key`.
    pub fn sign(&self, name: &Path, subject: &Subject<'_>, lasts: Duration) -> Result<Pair> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(subject.sans.clone())?;
        params.distinguished_name = distinguished_name(subject.name, subject.groups);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !subject.sans.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, lasts)?;
        let cert = params.signed_by(&key, &self.issuer)?;
        write_pair(name, &cert.pem(), &key.serialize_pem())
    }
}

/// Makes the key pair that signs service account tokens: `sa.key` and `sa.pub` in `folder`.
pub fn service_account_keys(folder: &Path) -> Result<()> {
    let key = KeyPair::generate()?;
    fs::write(folder.join("sa.pub"), key.public_key_pem())?;
    write_key(&folder.join("sa.key"), &key.serialize_pem())
}

fn distinguished_name(common_name: &str, groups: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for group in groups {
        name.push(DnType::OrganizationName, *group);
    }
    name.push(DnType::CommonName, common_name);
    name
}

#[expect(clippy::disallowed_methods, reason = "certificates are judged by real servers with the real clock")]
fn set_validity(params: &mut CertificateParams, lasts: Duration) -> Result<()> {
    let now = date_time_ymd(1970, 1, 1) + SystemTime::now().duration_since(UNIX_EPOCH)?;
    // Whole seconds are cut off in a certificate: without the minute it could begin in the future.
    params.not_before = now - Duration::from_secs(60);
    params.not_after = now + lasts;
    Ok(())
}

fn write_pair(name: &Path, cert: &str, key: &str) -> Result<Pair> {
    if let Some(folder) = name.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let pair = Pair { cert: with_ending(name, ".crt"), key: with_ending(name, ".key") };
    fs::write(&pair.cert, cert).with_context(|| format!("write {}", pair.cert.display()))?;
    write_key(&pair.key, key)?;
    Ok(pair)
}

fn with_ending(name: &Path, ending: &str) -> PathBuf {
    let mut name = name.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn write_key(path: &Path, key: &str) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("write {}", path.display()))?;
    file.write_all(key.as_bytes())?;
    Ok(())
}
