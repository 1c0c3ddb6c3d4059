//! Backups in a bucket: a real S3 server, which checks signatures and sums, and faults between it and us.

use super::*;
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError, HttpResponse};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

const KEY: (&str, &str) = ("quorate", "a secret of a test");
const BUCKET: &str = "etcd";

/// Uploads that nobody has completed: a killed run's, one of a cluster beside us that is at it, and somebody else's.
const LEFT: &str = "<ListMultipartUploadsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
    <Upload><Key>production/etcd-snapshot-20200101-000000.db</Key><UploadId>killed</UploadId></Upload>\
    <Upload><Key>production/etcd-snapshot-29990101-000000.db</Key><UploadId>beside</UploadId></Upload>\
    <Upload><Key>production/etcd-snapshot-other</Key><UploadId>other</UploadId></Upload></ListMultipartUploadsResult>";

/// What happens to requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// So many of them are answered with 500.
    Errors(u32),
    /// A part is taken and never answered.
    Silence,
    /// What is completed is put together when the caller has given up, and has looked once.
    Late,
    /// What is completed loses its last byte.
    Shrinks,
    /// Only part of what is listed is listed, and the rest is not to be had.
    HalfAList,
}

struct Server {
    root: TempDir,
    endpoint: String,
    fault: Arc<Mutex<Fault>>,
    parts: Arc<AtomicU32>,
    aborted: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start() -> Result<Self> {
        let root = TempDir::new()?;
        fs::create_dir(root.path().join(BUCKET))?;
        let store = s3s_fs::FileSystem::new(root.path()).map_err(|error| anyhow!("{error:?}"))?;
        let mut builder = S3ServiceBuilder::new(store);
        builder.set_auth(SimpleAuth::from_single(KEY.0, KEY.1));
        let (service, fault, parts) = (builder.build(), Arc::new(Mutex::new(Fault::None)), Arc::new(AtomicU32::new(0)));
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let aborted = Arc::new(Mutex::new(Vec::new()));
        let between = Between {
            service,
            fault: Arc::clone(&fault),
            parts: Arc::clone(&parts),
            aborted: Arc::clone(&aborted),
            late: Arc::default(),
            root: root.path().to_owned(),
        };
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((socket, _)) = listener.accept().await {
                    let between = between.clone();
                    let serve = hyper::service::service_fn(move |request| between.clone().answer(request));
                    tokio::spawn(
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), serve),
                    );
                }
            });
        });
        Ok(Self { root, endpoint, fault, parts, aborted })
    }

    fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    fn config(&self, more: &str) -> String {
        format!("{{s3: {{endpoint: '{}', bucket: {BUCKET}, prefix: production/}}, {more}}}", self.endpoint)
    }

    /// The objects, and what is half uploaded beside them.
    fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.root.path().join(BUCKET).join("production")).into_iter().flatten() {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Parts of uploads that nobody completed or aborted.
    fn left(&self) -> Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir(self.root.path())? {
            count += usize::from(entry?.file_name().to_string_lossy().contains("upload_id"));
        }
        Ok(count)
    }
}

#[derive(Clone)]
struct Between {
    service: S3Service,
    fault: Arc<Mutex<Fault>>,
    parts: Arc<AtomicU32>,
    aborted: Arc<Mutex<Vec<String>>>,
    late: Arc<Mutex<Option<Request<Body>>>>,
    root: PathBuf,
}

impl Between {
    async fn answer(self, request: Request<Incoming>) -> Result<HttpResponse, HttpError> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let query = uri.query().unwrap_or_default().to_owned();
        let is_part = method == Method::PUT && query.contains("partNumber");
        let fault = *self.fault.lock().unwrap();
        match fault {
            Fault::Errors(left) if left > 0 => {
                *self.fault.lock().unwrap() = Fault::Errors(left - 1);
                let mut answer = HttpResponse::new(Body::from("<Error><Code>InternalError</Code></Error>".to_owned()));
                *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                return Ok(answer);
            }
            Fault::Silence if is_part => std::future::pending().await,
            Fault::Late if method == Method::POST && query.contains("uploadId") => {
                let (head, body) = request.into_parts();
                let body = Body::from(body).store_all_limited(1_000_000).await.unwrap();
                *self.late.lock().unwrap() = Some(Request::from_parts(head, Body::from(body)));
                return std::future::pending().await;
            }
            Fault::HalfAList if method == Method::GET && query.contains("list-type") => {
                let more = query.contains("continuation-token");
                let text = "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><IsTruncated>true</IsTruncated>\
                    <NextContinuationToken>more</NextContinuationToken></ListBucketResult>";
                let mut answer = HttpResponse::new(Body::from(if more { String::new() } else { text.to_owned() }));
                if more {
                    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                }
                return Ok(answer);
            }
            _ => {}
        }
        if method == Method::GET && query.contains("uploads") {
            return Ok(HttpResponse::new(Body::from(LEFT.to_owned())));
        }
        if method == Method::DELETE && query.contains("uploadId") {
            self.aborted.lock().unwrap().push(query.clone());
        }
        self.parts.fetch_add(u32::from(is_part), Ordering::Relaxed);
        let answer = hyper::service::Service::call(&self.service, request).await?;
        let late = self.late.lock().unwrap().take_if(|_| method == Method::HEAD);
        if let Some(late) = late {
            let mut done = self.service.call(late).await?.into_body();
            done.store_all_limited(1_000_000).await.unwrap();
        }
        if fault == Fault::Shrinks && method == Method::POST && query.contains("uploadId") {
            let object = self.root.join(uri.path().trim_start_matches('/'));
            let length = fs::metadata(&object).map_or(0, |data| data.len());
            // The answer may be a stream that does the work while it is read: only then is the object there.
            let file = fs::OpenOptions::new().write(true).open(&object);
            if let Ok(file) = file {
                file.set_len(length.saturating_sub(1)).unwrap();
            }
        }
        Ok(answer)
    }
}

fn backup(host: &Host, keys: (&str, &str), args: &[&str]) -> Result<Said> {
    let mut command = host.command(args);
    Ok(command.env("AWS_ACCESS_KEY_ID", keys.0).env("AWS_SECRET_ACCESS_KEY", keys.1).output()?.into())
}

/// Whatever a store does that it should not: nothing is there under a name, nothing old is gone, and one line says why.
#[test]
fn a_bucket_that_fails_in_any_way_has_no_half_backup_and_loses_none() -> Result<()> {
    let (host, server) = (Host::of(EtcdVersion::V3_6, 1)?, Server::start()?);
    host.fill(12)?;
    let configured =
        |more: &str| host.configured(&server.config(&format!("compression: none, keep: 1, minimumAge: 0s{more}")));
    configured("")?;
    // Some answers of 500 are gone through.
    server.set(Fault::Errors(2));
    backup(&host, KEY, &[])?.ended(0, "Backup done");
    let before = server.names()?;
    assert_eq!(before.len(), 2, "{before:?}");
    assert!(server.parts.load(Ordering::Relaxed) > 2, "in parts");
    for (fault, what) in [
        (Fault::Errors(u32::MAX), "500"),
        (Fault::Silence, "write s3://etcd/production/"),
        (Fault::Shrinks, "the store keeps"),
    ] {
        server.set(fault);
        // A machine that is busy stalls for longer than this, so no other run has it.
        configured(if fault == Fault::Silence { ", stall: 2s" } else { "" })?;
        let said = backup(&host, KEY, &[])?.ended(1, what);
        assert!(said.out.contains("nothing was stored") && !said.out.contains("X-Amz"), "{said:?}");
        server.set(Fault::None);
        assert_eq!(server.names()?, before, "{fault:?}");
    }
    configured("")?;
    let said = backup(&host, ("quorate", "wrong"), &[])?.ended(1, "nothing was stored");
    assert!(said.out.contains("403") || said.out.contains("SignatureDoesNotMatch"), "{said:?}");
    assert_eq!(server.names()?, before);
    // A list that is not whole is no reason to remove anything.
    server.set(Fault::HalfAList);
    backup(&host, KEY, &[])?.ended(0, "nothing old was removed: list s3://etcd/production/");
    assert_eq!(server.names()?.len(), 4);
    server.set(Fault::None);
    backup(&host, KEY, &[])?.ended(0, "removed: ");
    assert_eq!(server.left()?, 0, "uploads are aborted");
    let aborted = server.aborted.lock().unwrap().join(" ");
    assert!(aborted.contains("uploadId=killed"), "{aborted}");
    assert!(!aborted.contains("uploadId=beside") && !aborted.contains("uploadId=other"), "{aborted}");
    // Nobody answers while the parts are put together: what is there in the end counts.
    server.set(Fault::Late);
    configured(", stall: 3s")?;
    until("it is of another second", PATIENCE, || {
        let said = backup(&host, KEY, &[])?;
        let taken = said.out.contains("it is there already");
        Ok(if taken { ControlFlow::Continue(anyhow!("{said:?}")) } else { ControlFlow::Break(said) })
    })?
    .ended(0, "Backup done");
    assert_eq!(server.names()?.len(), 2);
    Ok(())
}

#[test]
fn what_lies_in_a_bucket_is_verified_there() -> Result<()> {
    let (host, server) = (Host::of(EtcdVersion::V3_6, 1)?, Server::start()?);
    host.configured(&server.config(&format!("recipients: [{}]", KEYS[0].0)))?;
    backup(&host, KEY, &[])?.ended(0, "Backup done");
    let names = server.names()?;
    let file = names.iter().find(|name| name.ends_with(".db.zst.age")).context("no snapshot")?;
    let url = format!("s3://{BUCKET}/production/{file}");
    let key = key_file(host.state.path(), 0)?;
    let verify = || -> Result<Said> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(["etcd", "verify", "-ojson", &url, "--identity", &key]);
        let keys = [
            ("AWS_ENDPOINT_URL", server.endpoint.as_str()),
            ("AWS_ACCESS_KEY_ID", KEY.0),
            ("AWS_SECRET_ACCESS_KEY", KEY.1),
        ];
        Ok(command.envs(keys).output()?.into())
    };
    let said = verify()?.ended(0, "verified").document();
    assert_eq!(said["manifest"]["stored"]["file"], file.as_str());
    let path = server.root.path().join(BUCKET).join("production").join(file);
    let whole = fs::read(&path)?;
    fs::write(&path, &whole[..whole.len() - 20])?;
    verify()?.ended(21, "it is damaged");
    backup(&host, KEY, &["--list"])?.ended(0, &format!("has {} bytes, and had {}", whole.len() - 20, whole.len()));
    Ok(())
}
