//! What is in bucket `key`: a revision, and under it a KeyValue (etcd api/mvccpb/kv.proto), read in pieces.

use std::hash::{DefaultHasher, Hasher as _};

use crate::bytes::be64;

/// A revision without and with the mark of a deletion: main (8), `_`, sub (8), `t`.
const PLAIN: usize = 17;
const MARKED: usize = 18;
const MARK: u8 = b't';

/// The revision under which something is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Revision {
    pub(crate) main: i64,
    pub(crate) is_deletion: bool,
}

impl Revision {
    /// As etcd reads it (mvcc/revision.go, BytesToBucketKey). None when it is no revision.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let is_deletion = match bytes.len() {
            PLAIN => false,
            // etcd takes any other mark for none; it writes no other.
            MARKED if bytes.last() == Some(&MARK) => true,
            _ => return None,
        };
        if *bytes.get(8)? != b'_' {
            return None;
        }
        let main = i64::try_from(be64(bytes, 0)?).ok()?;
        i64::try_from(be64(bytes, 9)?).ok()?;
        Some(Self { main, is_deletion })
    }
}

/// Takes what of a KeyValue passes, in pieces.
pub(crate) trait Parts {
    /// More of its key.
    fn key(&mut self, bytes: &[u8]);

    /// More of its value.
    fn value(&mut self, _bytes: &[u8]) {}
}

/// Of the key alone.
impl Parts for DefaultHasher {
    fn key(&mut self, bytes: &[u8]) {
        self.write(bytes);
    }
}

/// Reads a KeyValue that comes in pieces.
#[derive(Default)]
pub(crate) struct KeyValue {
    state: State,
    number: u64,
    shift: u32,
    has_key: bool,
    has_value: bool,
    revision: u64,
}

/// What bytes are of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Key,
    Value,
    Other,
}

#[derive(Clone, Copy, Default)]
enum State {
    #[default]
    Tag,
    Number(u64),
    Length(u64),
    Bytes {
        of: Of,
        left: u64,
    },
}

/// Fields of the message.
const KEY: u64 = 1;
const MOD_REVISION: u64 = 3;
const VALUE: u64 = 5;

impl KeyValue {
    /// Takes the next piece; what is of the key and of the value goes to `parts`.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], parts: &mut impl Parts) -> Result<(), &'static str> {
        while let Some((first, rest)) = bytes.split_first() {
            if let State::Bytes { of, left } = self.state {
                let size = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let (these, others) = bytes.split_at(size);
                match of {
                    Of::Key => parts.key(these),
                    Of::Value => parts.value(these),
                    Of::Other => {}
                }
                bytes = others;
                self.skip(of, left.saturating_sub(size as u64));
                continue;
            }
            bytes = rest;
            let low = u64::from(first & 0x7f);
            if self.shift > 63 || (self.shift == 63 && low > 1) {
                return Err("has a number of more than 64 bits");
            }
            self.number |= low << self.shift;
            self.shift += 7;
            if first & 0x80 == 0 {
                let number = self.number;
                (self.number, self.shift) = (0, 0);
                self.number(number)?;
            }
        }
        Ok(())
    }

    /// A number has come to its end.
    fn number(&mut self, number: u64) -> Result<(), &'static str> {
        match self.state {
            State::Tag => {
                let field = number >> 3;
                self.state = match number & 7 {
                    0 => State::Number(field),
                    1 => State::Bytes { of: Of::Other, left: 8 },
                    2 => State::Length(field),
                    5 => State::Bytes { of: Of::Other, left: 4 },
                    _ => return Err("is no KeyValue: it has a field of unknown type"),
                };
                if field == 0 {
                    return Err("is no KeyValue: it has a field 0");
                }
            }
            State::Number(field) => {
                if field == MOD_REVISION {
                    self.revision = number;
                }
                self.state = State::Tag;
            }
            State::Length(field) => {
                let of = match field {
                    KEY if std::mem::replace(&mut self.has_key, true) => {
                        return Err("is no KeyValue: it has two keys");
                    }
                    VALUE if std::mem::replace(&mut self.has_value, true) => {
                        return Err("is no KeyValue: it has two values");
                    }
                    KEY => Of::Key,
                    VALUE => Of::Value,
                    _ => Of::Other,
                };
                self.skip(of, number);
            }
            State::Bytes { .. } => {}
        }
        Ok(())
    }

    fn skip(&mut self, of: Of, left: u64) {
        self.state = if left == 0 { State::Tag } else { State::Bytes { of, left } };
    }

    /// Whether the key has been read.
    pub(crate) fn key_is_read(&self) -> bool {
        self.has_key && !matches!(self.state, State::Bytes { of: Of::Key, .. })
    }

    /// The revision that it says it is of; 0 when it says none.
    pub(crate) fn finish(self) -> Result<i64, &'static str> {
        match self.state {
            State::Tag if self.shift == 0 => i64::try_from(self.revision).map_err(|_| "has a revision below 0"),
            State::Tag | State::Number(_) | State::Length(_) | State::Bytes { .. } => {
                Err("is no KeyValue: it is cut off")
            }
        }
    }
}
