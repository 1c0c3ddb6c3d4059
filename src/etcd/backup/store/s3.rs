//! A bucket of an object store that speaks S3. What is uploaded in parts is nowhere until the upload is completed.
//!
//! Requests are signed by rusty-s3 and sent by reqwest, which is here already: object_store wants chrono and aws-lc-rs.

use super::super::name;
use super::{Entry, SMALL, StoreError};
use crate::clock::Clock;
use crate::config;
use backon::{ExponentialBuilder, Retryable};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use md5::{Digest, Md5};
use reqwest::header::{CONTENT_LENGTH, ETAG};
use reqwest::{Method, Response, StatusCode};
use rusty_s3::actions::{CreateMultipartUpload, ListObjectsV2};
use rusty_s3::signing::sign;
use rusty_s3::{Bucket, Credentials, Map, S3Action, UrlStyle};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Bytes of a part: the least that S3 takes. Three of them are in memory at most, and 10,000 of them are 50 GiB.
const PART: usize = 5 * 1024 * 1024;
/// How long a signature holds: a request that is tried again is signed anew.
const SIGNED: Duration = Duration::from_secs(900);
/// Between two looks for what may still come.
const LOOK: Duration = Duration::from_millis(500);
/// How old an upload must be to be a killed run's: no run goes on for so long (`activeDeadlineSeconds` of its Job).
const LEFT: Duration = Duration::from_secs(24 * 3600);
/// How often a request is tried.
const TRIES: usize = 4;

/// A bucket.
pub struct S3 {
    shared: Arc<Shared>,
    prefix: String,
}

struct Shared {
    client: reqwest::Client,
    bucket: Bucket,
    credentials: Option<Credentials>,
    limit: Duration,
    clock: Clock,
    /// Uploads that are neither completed nor aborted, by their id: the key.
    open: Mutex<BTreeMap<String, String>>,
}

/// Takes the bytes of an object and sends them part by part.
pub struct Parts {
    name: String,
    key: String,
    id: String,
    buffer: BytesMut,
    bytes: u64,
    /// None when the sending has failed.
    parts: Option<mpsc::Sender<Bytes>>,
    sending: JoinHandle<Result<Vec<String>, StoreError>>,
}

/// An upload all of whose parts have come.
pub struct Upload {
    name: String,
    key: String,
    id: String,
    bytes: u64,
    tags: Vec<String>,
}

impl Upload {
    /// The name that it is going to have.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Bucket and key of `s3://BUCKET/KEY`.
pub fn address(url: &str) -> Option<(&str, &str)> {
    let (bucket, key) = url.strip_prefix("s3://")?.split_once('/')?;
    (!bucket.is_empty() && !key.is_empty()).then_some((bucket, key))
}

impl S3 {
    /// The bucket of the configuration, with the keys of the environment; without any, requests are not signed.
    ///
    /// # Errors
    /// In words, when it cannot be one.
    pub fn new(config: &config::S3, limit: Duration, clock: Clock) -> Result<Self, String> {
        let endpoint =
            config.endpoint.parse().map_err(|error| format!("`{}` is not a URL: {error}", config.endpoint))?;
        let style = if config.path_style { UrlStyle::Path } else { UrlStyle::VirtualHost };
        let bucket = Bucket::new(endpoint, style, config.bucket.clone(), config.region.clone())
            .map_err(|error| format!("bucket {} at {}: {error}", config.bucket, config.endpoint))?;
        let client = reqwest::Client::builder().connect_timeout(limit).build().map_err(|error| error.to_string())?;
        let credentials = Credentials::from_env();
        let shared = Shared { client, bucket, credentials, limit, clock, open: Mutex::default() };
        Ok(Self { shared: Arc::new(shared), prefix: config.prefix.clone() })
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(super) async fn list(&self) -> Result<Vec<Entry>, StoreError> {
        let what = format!("list {self}");
        let (mut found, mut token) = (Vec::new(), None::<String>);
        loop {
            let answer = self.shared.send(&what, Method::GET, None, SMALL, |shared| {
                let mut list = shared.bucket.list_objects_v2(shared.credentials.as_ref());
                list.with_prefix(self.prefix.as_str());
                // What is deeper is somebody else's.
                list.with_delimiter("/");
                token.iter().for_each(|token| list.with_continuation_token(token.as_str()));
                shared.sign(&list)
            });
            let page = text(&what, answer.await?).await?;
            let page = ListObjectsV2::parse_response(&page).map_err(|error| StoreError::new(&what, error))?;
            for object in page.contents {
                let Some(name) = object.key.strip_prefix(&self.prefix) else { continue };
                let bytes = object.size.ok_or_else(|| StoreError::new(&what, format!("{name} has no size")))?;
                found.push(Entry { name: name.to_owned(), bytes });
            }
            match page.next_continuation_token {
                None => return Ok(found),
                next => token = next,
            }
        }
    }

    pub(super) async fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        self.fetch(name, &mut bytes).await?;
        Ok(bytes)
    }

    pub(super) async fn fetch(&self, name: &str, mut out: impl Write) -> Result<(), StoreError> {
        let (what, key) = (format!("read {self}{name}"), self.key(name));
        let wrong = |error: &dyn std::fmt::Display| StoreError::new(&what, error);
        let limit = self.shared.limit;
        let asked = self.shared.request(Method::GET, None, |shared| {
            shared.sign(&shared.bucket.get_object(shared.credentials.as_ref(), &key))
        });
        let answer = tokio::time::timeout(limit, asked.send()).await.map_err(|_| wrong(&silent(limit)))?;
        let mut answer = good(&what, answer.map_err(|error| wrong(&said(error)))?).await?;
        let length = answer.content_length();
        let mut came = 0_u64;
        loop {
            let chunk = tokio::time::timeout(limit, answer.chunk()).await.map_err(|_| wrong(&silent(limit)))?;
            let Some(chunk) = chunk.map_err(|error| wrong(&said(error)))? else { break };
            came = came.saturating_add(chunk.len() as u64);
            out.write_all(&chunk).map_err(|error| wrong(&error))?;
        }
        match length {
            Some(length) if length != came => Err(wrong(&format!("{came} bytes came of {length}"))),
            _ => Ok(()),
        }
    }

    pub(super) async fn begin(&self, name: &str) -> Result<Parts, StoreError> {
        let (what, key) = (format!("write {self}{name}"), self.key(name));
        if self.size(&what, &key).await?.is_some() {
            return Err(StoreError::new(what, "it is there already"));
        }
        let answer = self.shared.send(&what, Method::POST, None, SMALL, |shared| {
            shared.sign(&shared.bucket.create_multipart_upload(shared.credentials.as_ref(), &key))
        });
        let answer = text(&what, answer.await?).await?;
        let created = CreateMultipartUpload::parse_response(&answer).map_err(|error| StoreError::new(&what, error))?;
        let id = created.upload_id().to_owned();
        self.shared.open().insert(id.clone(), key.clone());
        let (sender, parts) = mpsc::channel(1);
        let sending = tokio::spawn(send_parts(Arc::clone(&self.shared), what, key.clone(), id.clone(), parts));
        let buffer = BytesMut::with_capacity(PART);
        Ok(Parts { name: name.to_owned(), key, id, buffer, bytes: 0, parts: Some(sender), sending })
    }

    /// The size of an object; none when there is none.
    async fn size(&self, what: &str, key: &str) -> Result<Option<u64>, StoreError> {
        let answer = self.shared.send_to(what, Method::HEAD, None, SMALL, |shared| {
            shared.sign(&shared.bucket.head_object(shared.credentials.as_ref(), key))
        });
        let answer = answer.await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let answer = good(what, answer).await?;
        let length = answer.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        length.map(Some).ok_or_else(|| StoreError::new(what, "its size is not told"))
    }

    /// The same, looked at for a while: a store that has not answered may still be putting the parts together.
    async fn appears(&self, what: &str, key: &str) -> Result<Option<u64>, StoreError> {
        let end = tokio::time::Instant::now() + self.shared.limit;
        loop {
            match self.size(what, key).await? {
                None if tokio::time::Instant::now() < end => tokio::time::sleep(LOOK).await,
                there => return Ok(there),
            }
        }
    }

    pub(super) async fn complete(&self, upload: Upload) -> Result<(), StoreError> {
        let what = format!("complete {self}{}", upload.name);
        let action = |shared: &Shared| {
            let tags = upload.tags.iter().map(String::as_str);
            let action =
                shared.bucket.complete_multipart_upload(shared.credentials.as_ref(), &upload.key, &upload.id, tags);
            (shared.sign(&action), action.body())
        };
        // Once: an upload that is completed is gone, so that a second try would be told so.
        let (url, body) = action(&self.shared);
        let asked = self.shared.client.request(Method::POST, url).body(body).timeout(self.shared.limit);
        let answer = asked.send().await.map_err(|error| StoreError::new(&what, said(error)));
        let is_over = answer.as_ref().is_ok_and(|answer| !answer.status().is_server_error());
        let done = match answer {
            Ok(answer) => match good(&what, answer).await {
                // A failure may come as a success whose body says so.
                Ok(answer) => text(&what, answer).await.and_then(|body| {
                    rusty_s3::actions::CompleteMultipartUploadResponse::parse(&body)
                        .map(drop)
                        .map_err(|error| StoreError::new(&what, error))
                }),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        // What is there decides, whatever was said: an answer may be lost, and a store may keep less than it was given.
        let there = if is_over { self.size(&what, &upload.key).await } else { self.appears(&what, &upload.key).await };
        match (done, there) {
            (_, Ok(Some(bytes))) if bytes == upload.bytes => {
                self.shared.open().remove(&upload.id);
                Ok(())
            }
            (done, Ok(there)) => {
                let error = done.err().unwrap_or_else(|| {
                    let kept = there.map_or_else(|| "nothing".to_owned(), |bytes| format!("{bytes} bytes"));
                    StoreError::new(&what, format!("the store keeps {kept} of {}", upload.bytes))
                });
                if there.is_some() {
                    self.remove(&upload.name).await?;
                }
                Err(error)
            }
            (Err(error), Err(_)) | (Ok(()), Err(error)) => {
                self.remove(&upload.name).await?;
                Err(error)
            }
        }
    }

    pub(super) async fn remove(&self, name: &str) -> Result<(), StoreError> {
        let (what, key) = (format!("remove {self}{name}"), self.key(name));
        let answer = self.shared.send_to(&what, Method::DELETE, None, SMALL, |shared| {
            shared.sign(&shared.bucket.delete_object(shared.credentials.as_ref(), &key))
        });
        let answer = answer.await?;
        if answer.status() == StatusCode::NOT_FOUND { Ok(()) } else { good(&what, answer).await.map(drop) }
    }

    /// Aborts what this process has open, and what killed ones have left.
    pub(super) async fn abort_all(&self) {
        let mut open = std::mem::take(&mut *self.shared.open());
        match self.left().await {
            Ok(left) => open.extend(left),
            Err(error) => tracing::warn!(%error, "Uploads of killed backups were not looked for"),
        }
        for (id, key) in open {
            let what = format!("abort the upload of {key}");
            let answer = self.shared.send(&what, Method::DELETE, None, SMALL, |shared| {
                shared.sign(&shared.bucket.abort_multipart_upload(shared.credentials.as_ref(), &key, &id))
            });
            if let Err(error) = answer.await {
                tracing::warn!(%error, "Parts of an upload stay: the bucket's own rules have to remove them");
            }
        }
    }
}

impl S3 {
    /// Uploads that are called as ours are and old enough to be nobody's any more: their keys by their ids. The names tell their time, so that
    /// what a cluster beside us uploads now stays.
    async fn left(&self) -> Result<Vec<(String, String)>, StoreError> {
        let what = format!("list the uploads of {self}");
        let begins = self.key(name::PREFIX);
        // Once: there are stores that do not know the request.
        let asked = self.shared.request(Method::GET, None, |shared| {
            shared.sign(&Uploads::of(&shared.bucket, shared.credentials.as_ref(), &begins))
        });
        let answer = asked.timeout(SMALL.min(self.shared.limit)).send().await;
        let answer = answer.map_err(|error| StoreError::new(&what, said(error)))?;
        let body = text(&what, good(&what, answer).await?).await?;
        let before = name::of(self.shared.clock.now() - LEFT);
        let mut left = Vec::new();
        for upload in body.split("<Upload>").skip(1) {
            let (Some(key), Some(id)) = (within(upload, "Key"), within(upload, "UploadId")) else { continue };
            let own = key.strip_prefix(&self.prefix).filter(|own| !own.contains('/'));
            if own.and_then(name::backup_of).is_some_and(|backup| backup < before.as_str()) {
                left.push((id.to_owned(), key.to_owned()));
            }
        }
        Ok(left)
    }
}

/// The list of uploads that are not completed, which rusty-s3 does not know. The first thousand: those that are left come with the next run.
struct Uploads<'a> {
    bucket: &'a Bucket,
    credentials: Option<&'a Credentials>,
    query: Map<'a>,
    headers: Map<'a>,
}

impl<'a> Uploads<'a> {
    fn of(bucket: &'a Bucket, credentials: Option<&'a Credentials>, begins: &'a str) -> Self {
        let mut query = Map::new();
        query.insert("prefix", begins);
        query.insert("uploads", "");
        Self { bucket, credentials, query, headers: Map::new() }
    }
}

impl<'a> S3Action<'a> for Uploads<'a> {
    const METHOD: rusty_s3::Method = rusty_s3::Method::Get;

    fn query_mut(&mut self) -> &mut Map<'a> {
        &mut self.query
    }

    fn headers_mut(&mut self) -> &mut Map<'a> {
        &mut self.headers
    }

    fn sign_with_time(&self, expires_in: Duration, time: &jiff::Timestamp) -> reqwest::Url {
        let mut url = self.bucket.base_url().clone();
        let Some(keys) = self.credentials else {
            url.query_pairs_mut().extend_pairs(self.query.iter());
            return url;
        };
        let (region, seconds) = (self.bucket.region(), expires_in.as_secs());
        let (query, headers) = (self.query.iter(), self.headers.iter());
        sign(time, Self::METHOD, url, keys.key(), keys.secret(), keys.token(), region, seconds, query, headers)
    }
}

impl std::fmt::Display for S3 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "s3://{}/{}", self.shared.bucket.name(), self.prefix)
    }
}

impl Shared {
    fn open(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sign<'a>(&self, action: &impl S3Action<'a>) -> reqwest::Url {
        action.sign_with_time(SIGNED, &self.clock.now())
    }

    fn request(
        &self,
        method: Method,
        body: Option<&Bytes>,
        url: impl Fn(&Self) -> reqwest::Url,
    ) -> reqwest::RequestBuilder {
        let request = self.client.request(method, url(self));
        match body {
            // The store compares: a bit that falls over on the way is told by it.
            Some(body) => request.header("content-md5", BASE64_STANDARD.encode(Md5::digest(body))).body(body.clone()),
            None => request,
        }
    }

    /// Sends a request until it is answered, each time signed anew; what the store itself could not do is tried again.
    async fn send_to(
        &self,
        what: &str,
        method: Method,
        body: Option<&Bytes>,
        limit: Duration,
        url: impl Fn(&Self) -> reqwest::Url,
    ) -> Result<Response, StoreError> {
        let limit = limit.min(self.limit);
        let once = || async {
            let answer = self.request(method.clone(), body, &url).timeout(limit).send().await;
            let answer = answer.map_err(|error| StoreError::new(what, said(error)))?;
            if answer.status().is_server_error() || answer.status() == StatusCode::TOO_MANY_REQUESTS {
                return good(what, answer).await;
            }
            Ok(answer)
        };
        once.retry(ExponentialBuilder::default().with_max_times(TRIES - 1)).await
    }

    /// The same, and the answer has to be a good one.
    async fn send(
        &self,
        what: &str,
        method: Method,
        body: Option<&Bytes>,
        limit: Duration,
        url: impl Fn(&Self) -> reqwest::Url,
    ) -> Result<Response, StoreError> {
        good(what, self.send_to(what, method, body, limit, url).await?).await
    }
}

async fn send_parts(
    shared: Arc<Shared>,
    what: String,
    key: String,
    id: String,
    mut parts: mpsc::Receiver<Bytes>,
) -> Result<Vec<String>, StoreError> {
    let mut tags = Vec::new();
    while let Some(part) = parts.recv().await {
        let number = u16::try_from(tags.len().saturating_add(1))
            .map_err(|_| StoreError::new(&what, "it is larger than a bucket takes"))?;
        let answer = shared.send(&what, Method::PUT, Some(&part), shared.limit, |shared| {
            shared.sign(&shared.bucket.upload_part(shared.credentials.as_ref(), &key, number, &id))
        });
        let answer = answer.await?;
        let tag = answer.headers().get(ETAG).and_then(|tag| tag.to_str().ok());
        tags.push(tag.ok_or_else(|| StoreError::new(&what, "a part was stored without an ETag"))?.to_owned());
    }
    Ok(tags)
}

impl Parts {
    /// Hands a part to who sends it, and waits while that one is behind.
    fn hand_over(&mut self) -> io::Result<()> {
        let part = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(PART)).freeze();
        let sent = self.parts.as_ref().map(|parts| parts.blocking_send(part));
        // Why it is not sent any more is told by `end`.
        sent.and_then(Result::ok).ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe))
    }

    /// After the last byte.
    pub(super) async fn end(mut self) -> Result<Upload, StoreError> {
        if let Some(parts) = self.parts.take() {
            // Also an object without a byte has a part.
            let last = std::mem::take(&mut self.buffer).freeze();
            if !last.is_empty() || self.bytes == 0 {
                drop(parts.send(last).await);
            }
        }
        let tags = self.sending.await.map_err(|error| StoreError::new(format!("write {}", self.name), error))??;
        Ok(Upload { name: self.name, key: self.key, id: self.id, bytes: self.bytes, tags })
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PART.saturating_sub(self.buffer.len());
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.buffer.extend_from_slice(taken);
        self.bytes = self.bytes.saturating_add(taken.len() as u64);
        if self.buffer.len() == PART {
            self.hand_over()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An answer that is no success, in words: S3 says why in a few lines of XML.
async fn good(what: &str, answer: Response) -> Result<Response, StoreError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let body = answer.text().await.unwrap_or_default();
    let why: Vec<&str> = ["Code", "Message"].into_iter().filter_map(|tag| within(&body, tag)).collect();
    Err(StoreError::new(what, format!("{status} {}", why.join(": ")).trim_end()))
}

/// The text of an element of XML, as it is written there.
fn within<'a>(xml: &'a str, tag: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{tag}>"))?;
    Some(rest.split_once('<')?.0)
}

async fn text(what: &str, answer: Response) -> Result<String, StoreError> {
    answer.text().await.map_err(|error| StoreError::new(what, said(error)))
}

/// Without the URL, which is signed.
fn said(error: reqwest::Error) -> String {
    crate::observe::etcd::words(&error.without_url())
}

fn silent(limit: Duration) -> String {
    format!("nothing came for {} s", limit.as_secs_f32())
}
