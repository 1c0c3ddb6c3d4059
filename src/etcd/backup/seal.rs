//! What is done to a file on its way into a store, and undone on its way out: zstd, then age. Both ways in a pipe, whatever the size.

use super::manifest::{Compression, Encryption, EncryptionKind};
use age::x25519;
use sha2::{Digest, Sha256};
use std::io::{self, Read, Write};
use std::path::Path;
use std::str::FromStr;

/// zstd's own default. A database of etcd shrinks to a quarter or so, and higher levels save little of that.
const LEVEL: i32 = 3;
/// What age's files begin with (age-encryption.org/v1).
const AGE: &[u8] = b"age-encryption.org/v1\n";
/// What zstd's files begin with (RFC 8878, 3.1.1).
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Bytes that are looked at to tell what a file is.
const MAGIC: usize = AGE.len();
/// zstd's default for how much memory a file may ask of its reader: 8 MiB as a power of two. What we write asks for 2 MiB.
const WINDOW: u32 = 23;

/// Whose identity opens what is encrypted: a public key of age.
#[derive(Clone)]
pub struct Recipient(x25519::Recipient);

/// What opens it: a secret key of age.
pub struct Identity(x25519::Identity);

impl FromStr for Recipient {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| "expected a public key of age, as age-keygen prints it: age1…".to_owned())
    }
}

impl Identity {
    /// Reads a file of identities as age-keygen writes it: one a line, comments beside them.
    ///
    /// # Errors
    /// When it cannot be read, or holds none; what is secret is not in the text.
    pub fn read(path: &Path) -> Result<Vec<Self>, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let lines = text.lines().zip(1..).map(|(line, number)| (line.trim(), number));
        let lines = lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
        let found: Result<Vec<Self>, String> = lines
            .map(|(line, number)| {
                let parsed = line.parse().map(Self);
                parsed.map_err(|_| {
                    format!("{}, line {number}: expected a secret key of age: AGE-SECRET-KEY-1…", path.display())
                })
            })
            .collect();
        let found = found?;
        if found.is_empty() { Err(format!("{}: it holds no secret key of age", path.display())) } else { Ok(found) }
    }
}

/// What is to be done to a file.
#[derive(Clone)]
pub struct Seal {
    /// How it is compressed.
    pub compression: Compression,
    /// For whom it is encrypted; for nobody: it is not.
    pub recipients: Vec<Recipient>,
}

/// What has gone out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// Bytes.
    pub bytes: u64,
    /// Their SHA-256, in hexadecimal.
    pub sha256: String,
}

impl Seal {
    /// As it is stored when nothing is done to it.
    pub fn is_none(&self) -> bool {
        self.compression == Compression::None && self.recipients.is_empty()
    }

    /// For a manifest.
    pub fn encryption(&self) -> Option<Encryption> {
        let recipients: Vec<String> = self.recipients.iter().map(|recipient| recipient.0.to_string()).collect();
        (!recipients.is_empty()).then_some(Encryption { kind: EncryptionKind::Age, recipients })
    }

    /// What `fill` writes, sealed, into `out`, which comes back with what has gone into it.
    ///
    /// # Errors
    /// Those of `fill` and of `out`.
    pub fn write<W: Write>(&self, out: W, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<(W, Sum)> {
        let summed = Summed::new(out);
        let crypt = if self.recipients.is_empty() {
            Crypt::Plain(summed)
        } else {
            let recipients = self.recipients.iter().map(|recipient| &recipient.0 as &dyn age::Recipient);
            let encryptor = age::Encryptor::with_recipients(recipients)
                .map_err(|_| io::Error::other("age does not encrypt for these recipients"))?;
            Crypt::Age(encryptor.wrap_output(summed)?)
        };
        let crypt = match self.compression {
            Compression::None => {
                let mut crypt = crypt;
                fill(&mut crypt)?;
                crypt
            }
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(crypt, LEVEL)?;
                // zstd's own checksum: who decompresses by hand is told of damage as well.
                encoder.include_checksum(true)?;
                fill(&mut encoder)?;
                encoder.finish()?
            }
        };
        let summed = match crypt {
            Crypt::Plain(summed) => summed,
            Crypt::Age(stream) => stream.finish()?,
        };
        Ok(summed.end())
    }
}

enum Crypt<W: Write> {
    Plain(Summed<W>),
    Age(age::stream::StreamWriter<Summed<W>>),
}

impl<W: Write> Write for Crypt<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(bytes),
            Self::Age(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.flush(),
            Self::Age(out) => out.flush(),
        }
    }
}

/// Counts and hashes what goes through it, either way.
pub(super) struct Summed<T> {
    inner: T,
    sha: Sha256,
    bytes: u64,
}

impl<T> Summed<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, sha: Sha256::new(), bytes: 0 }
    }

    fn count(&mut self, bytes: &[u8]) {
        self.sha.update(bytes);
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
    }

    pub(super) fn end(self) -> (T, Sum) {
        (self.inner, Sum { bytes: self.bytes, sha256: hex(&self.sha.finalize()) })
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.count(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let bytes = buffer.get(..read).unwrap_or_default();
        self.sha.update(bytes);
        self.bytes = self.bytes.saturating_add(read as u64);
        Ok(read)
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Why a file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum UnsealError {
    /// It could not be read, or what came out not be written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is encrypted, and nobody gave an identity.
    #[error("it is encrypted: name the file with the identity that opens it by --identity")]
    NoIdentity,
    /// None of the identities opens it.
    #[error("it is encrypted, and for none of the identities that were given")]
    WrongIdentity,
    /// What age wrote around it is damaged.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// What a file is, as it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Neither of the others.
    Plain,
    /// Compressed.
    Zstd,
    /// Encrypted.
    Age,
}

impl Kind {
    /// By its first bytes.
    pub fn of(begin: &[u8]) -> Self {
        if begin.starts_with(AGE) {
            Self::Age
        } else if begin.starts_with(&ZSTD) {
            Self::Zstd
        } else {
            Self::Plain
        }
    }
}

/// Undoes what [`Seal::write`] has done, and writes what was in it to `out`: what has come in.
///
/// # Errors
/// When it cannot be opened; `out` then holds what had come out, and is not to be used.
pub fn unseal(input: impl Read, identities: &[Identity], mut out: impl Write) -> Result<Sum, UnsealError> {
    let mut stored = Summed::new(input);
    let begin = begin(&mut stored)?;
    match Kind::of(&begin) {
        Kind::Age => {
            if identities.is_empty() {
                return Err(UnsealError::NoIdentity);
            }
            // Buffered by ourselves: what age reads ahead is read of the whole file, whatever it needs of it.
            let input = io::BufReader::with_capacity(64 * 1024, begin.as_slice().chain(&mut stored));
            let identities = identities.iter().map(|identity| &identity.0 as &dyn age::Identity);
            let decryptor = age::Decryptor::new_buffered(input).map_err(of_age)?;
            let mut plain = decryptor.decrypt(identities).map_err(of_age)?;
            let inner = self::begin(&mut plain).map_err(damaged)?;
            decompress(&inner, &mut plain, &mut out)?;
        }
        Kind::Zstd | Kind::Plain => decompress(&begin, &mut stored, &mut out)?,
    }
    // What lies behind the end of it counts as well.
    io::copy(&mut stored, &mut io::sink())?;
    Ok(stored.end().1)
}

fn decompress(begin: &[u8], rest: &mut impl Read, out: &mut impl Write) -> Result<(), UnsealError> {
    let mut input = begin.chain(rest);
    if Kind::of(begin) == Kind::Zstd {
        let mut decoder = zstd::Decoder::new(input).map_err(UnsealError::Io)?;
        decoder.window_log_max(WINDOW)?;
        io::copy(&mut decoder, out).map_err(damaged)?;
    } else {
        io::copy(&mut input, out).map_err(damaged)?;
    }
    Ok(())
}

/// As much of the beginning as tells what it is.
fn begin(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut begin = Vec::with_capacity(MAGIC);
    input.take(MAGIC as u64).read_to_end(&mut begin)?;
    Ok(begin)
}

/// Both age and zstd tell of damage as an error of reading; only the system's own have a number.
fn damaged(error: io::Error) -> UnsealError {
    match (error.raw_os_error(), error.kind()) {
        (Some(_), _) => UnsealError::Io(error),
        (None, io::ErrorKind::UnexpectedEof) => UnsealError::Damaged("it is cut off"),
        (None, io::ErrorKind::Other | io::ErrorKind::InvalidData) => {
            UnsealError::Damaged("what is compressed or encrypted in it is not what was written")
        }
        (None, _) => UnsealError::Io(error),
    }
}

fn of_age(error: age::DecryptError) -> UnsealError {
    match error {
        age::DecryptError::NoMatchingKeys => UnsealError::WrongIdentity,
        age::DecryptError::Io(error) => damaged(error),
        age::DecryptError::UnknownFormat => UnsealError::Damaged("a format of age that is not known"),
        _ => UnsealError::Damaged("its header of age is not what was written"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Recipient, Identity) {
        let identity = x25519::Identity::generate();
        (Recipient(identity.to_public()), Identity(identity))
    }

    fn content() -> Vec<u8> {
        (0..300_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect()
    }

    fn sealed(seal: &Seal) -> (Vec<u8>, Sum) {
        seal.write(Vec::new(), |out| out.write_all(&content())).unwrap()
    }

    #[test]
    fn what_was_sealed_in_any_way_comes_back() {
        let (recipient, identity) = pair();
        let (other, stranger) = pair();
        let all = [identity];
        for compression in [Compression::None, Compression::Zstd] {
            for recipients in [vec![], vec![recipient.clone()], vec![other.clone(), recipient.clone()]] {
                let seal = Seal { compression, recipients };
                let (bytes, sum) = sealed(&seal);
                assert_eq!((sum.bytes, sum.sha256), (bytes.len() as u64, hex(&Sha256::digest(&bytes))));
                assert_eq!(seal.is_none(), bytes == content());
                let mut back = Vec::new();
                let stored = unseal(bytes.as_slice(), &all, &mut back).unwrap();
                assert!(back == content());
                assert_eq!(stored.sha256, hex(&Sha256::digest(&bytes)));
            }
        }
        let (bytes, _) = sealed(&Seal { compression: Compression::Zstd, recipients: vec![recipient] });
        let said = |identities: &[Identity]| unseal(bytes.as_slice(), identities, io::sink()).unwrap_err();
        assert!(matches!(said(&[]), UnsealError::NoIdentity));
        assert!(matches!(said(&[stranger]), UnsealError::WrongIdentity));
    }

    #[test]
    fn damage_and_a_cut_are_told_wherever_they_are() {
        let (recipient, identity) = pair();
        let all = [identity];
        for recipients in [vec![], vec![recipient]] {
            let (bytes, _) = sealed(&Seal { compression: Compression::Zstd, recipients });
            for at in (0..bytes.len()).step_by(bytes.len() / 40) {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x10;
                let mut back = Vec::new();
                // A file that does not even begin as it should is another file.
                let said = unseal(damaged.as_slice(), &all, &mut back);
                assert!(said.is_err() || back == damaged, "byte {at}");
                let cut = unseal(&bytes[..at], &all, io::sink());
                assert!(cut.is_err() || at < MAGIC, "cut at {at}");
            }
        }
    }

    #[test]
    fn identities_are_read_as_age_keygen_writes_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.txt");
        std::fs::write(&path, "# created: today\n\nnot a key\n").unwrap();
        assert!(Identity::read(&path).err().unwrap().contains("line 3: expected a secret key of age"));
        std::fs::write(&path, "# nothing\n").unwrap();
        assert!(Identity::read(&path).err().unwrap().contains("no secret key"));
        assert!("age1abc".parse::<Recipient>().err().unwrap().contains("age-keygen"));
    }
}
