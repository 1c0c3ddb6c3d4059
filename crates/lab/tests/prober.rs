//! The prober against a real kube-apiserver behind a TCP proxy of the test: one cut connection is one failure of its class,
//! and a proper close between requests is none.

#![cfg(test)]

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lab::api::{Api, Spec};
use lab::prober::{self, Class, Options, Report};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

const CLASSES: [Class; 4] = Class::ALL;

/// What the proxy does, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Takes this many pieces of data from the client of a connection, and resets it instead of passing the last one on.
    Cut { at: usize },
    /// Ends a connection properly, after this many pieces, when the server has answered and nothing is asked.
    Close { after: usize },
}

type Plan = Arc<Mutex<Option<Fault>>>;

/// Carries connections to the apiserver; the first that is eligible after those of the prober's admission has the fault.
fn proxy(server: SocketAddr, fault: Option<Fault>, admission: u64) -> (SocketAddr, Plan) {
    let plan = Arc::new(Mutex::new(fault));
    let (kept, (say, hear)) = (plan.clone(), mpsc::channel());
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            say.send(listener.local_addr().unwrap()).unwrap();
            for number in 1.. {
                let (client, _) = listener.accept().await.unwrap();
                let plan = (number > admission).then(|| plan.clone());
                tokio::spawn(carry(client, server, plan));
            }
        });
    });
    (hear.recv().unwrap(), kept)
}

/// Whether this connection has the fault: nobody had it before.
fn take(plan: Option<&Plan>, wanted: impl Fn(Fault) -> bool) -> bool {
    plan.is_some_and(|plan| plan.lock().unwrap().take_if(|fault| wanted(*fault)).is_some())
}

async fn carry(mut client: TcpStream, server: SocketAddr, plan: Option<Plan>) {
    let mut server = TcpStream::connect(server).await.unwrap();
    let (mut asked, mut answered) = (vec![0; 1 << 14], vec![0; 1 << 14]);
    let (mut pieces, mut quiet) = (0, false);
    loop {
        tokio::select! {
            got = client.read(&mut asked) => {
                let Ok(1..) = got else { return };
                pieces += 1;
                quiet = false;
                if take(plan.as_ref(), |fault| matches!(fault, Fault::Cut { at } if at <= pieces)) {
                    client.set_zero_linger().unwrap();
                    return;
                }
                if server.write_all(&asked[..got.unwrap()]).await.is_err() { return }
            }
            got = server.read(&mut answered) => {
                let Ok(1..) = got else { return };
                quiet = true;
                if client.write_all(&answered[..got.unwrap()]).await.is_err() { return }
            }
            () = sleep(Duration::from_millis(50)), if quiet => {
                if take(plan.as_ref(), |fault| matches!(fault, Fault::Close { after } if after <= pieces)) { return }
            }
        }
    }
}

/// An apiserver with the demo's own account and role.
fn start(apiserver_args: &[&str]) -> Api {
    let args = apiserver_args.iter().map(ToString::to_string).collect();
    let api = Api::start(Spec { apiserver_args: args, ..Spec::default() }).unwrap();
    api.apply(include_str!("../demo/prober.yaml")).unwrap();
    fs::create_dir(folder(&api)).unwrap();
    kubeadm_config(&api);
    pod_account(&api);
    api
}

/// Where the accounts of the probers are; gone with the apiserver.
fn folder(api: &Api) -> PathBuf {
    api.etcd().dir().join("prober")
}

/// A kubeconfig as kubeadm writes it: certificates in the file.
fn kubeadm_config(api: &Api) {
    let read = |name: &str| STANDARD.encode(fs::read(api.pki_dir().join(name)).unwrap());
    let text = format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {}\n    server: https://10.10.0.10:6443\n  \
         name: kubernetes\ncontexts: []\nkind: Config\nusers:\n- name: kubernetes-admin\n  user:\n    \
         client-certificate-data: {}\n    client-key-data: {}\n",
        read("ca.crt"),
        read("admin.crt"),
        read("admin.key")
    );
    fs::write(folder(api).join("admin.conf"), text).unwrap();
}

/// What the kubelet mounts into a pod.
fn pod_account(api: &Api) {
    let kubeconfig = fs::read(api.kubeconfig_for("quorate-demo", "prober").unwrap()).unwrap();
    let kubeconfig: serde_json::Value = serde_json::from_slice(&kubeconfig).unwrap();
    fs::write(folder(api).join("token"), kubeconfig["users"][0]["user"]["token"].as_str().unwrap()).unwrap();
    fs::copy(api.pki_dir().join("ca.crt"), folder(api).join("ca.crt")).unwrap();
}

/// A prober of one class only, and what became of the fault. Half of the classes ask as the administrator, half as a pod.
fn probe(api: &Api, class: Class, fault: Option<Fault>, rate: u32) -> Report {
    let administrator = matches!(class, Class::New | Class::Kept);
    let server = SocketAddr::new(api.address(1).into(), 6443);
    let of = |one: Class| if one == class { rate } else { 0 };
    let mut options = Options {
        server: String::new(),
        kubeconfig: administrator.then(|| folder(api).join("admin.conf")),
        account: folder(api),
        namespace: "quorate-demo".to_owned(),
        config_map: String::new(),
        new_rate: of(Class::New),
        kept_rate: of(Class::Kept),
        http2_rate: of(Class::Http2),
        write_rate: of(Class::Write),
        connections: 1,
        seconds: Some(6),
        report: None,
    };
    // To make and read one object, and to make and write the others, each on a connection of its own.
    let (address, plan) = proxy(server, fault, 2 + 2 * options.written());
    options.server = format!("https://{address}");
    options.config_map = format!("prober-{}", address.port());
    let report = prober::run(&options).unwrap();
    assert_eq!(*plan.lock().unwrap(), None, "the proxy met no connection for its fault: {report:?}");
    report
}

/// The same for several classes at once.
fn probes(
    api: &Api,
    classes: &[Class],
    fault: impl Fn(Class) -> Option<Fault> + Sync,
    rate: u32,
) -> Vec<(Class, Report)> {
    thread::scope(|scope| {
        let fault = &fault;
        let running: Vec<_> = classes
            .iter()
            .map(|class| (*class, scope.spawn(move || probe(api, *class, fault(*class), rate))))
            .collect();
        running.into_iter().map(|(class, thread)| (class, thread.join().unwrap())).collect()
    })
}

/// Failures, requests at least, and proper reopenings of the one class that was asked.
fn counted(class: Class, report: &Report) -> (u64, u64) {
    let tally = &report.classes[&class];
    assert_eq!(report.classes.len(), 1, "{report:?}");
    assert_eq!(tally.failed, report.failures.len() as u64, "{report:?}");
    assert!(report.failures.iter().all(|failure| failure.class == class && !failure.error.is_empty()), "{report:?}");
    assert!(tally.requests >= 20, "{report:?}");
    (tally.failed, tally.reopened)
}

#[test]
fn one_cut_connection_of_each_class_is_one_failure_and_a_proper_close_is_none() {
    // Without GOAWAY: a piece that is cut while a connection ends properly is no request.
    let api = start(&[]);

    // The first piece is TLS's hello: a new connection is cut in its handshake, a kept one in a request.
    let cut = |class| Some(Fault::Cut { at: if matches!(class, Class::New | Class::Write) { 1 } else { 10 } });
    for (class, report) in probes(&api, &CLASSES, cut, 10) {
        assert_eq!(counted(class, &report).0, 1, "one cut: {report:?}");
    }

    for (class, report) in probes(&api, &[Class::Kept], |_| Some(Fault::Close { after: 6 }), 4) {
        assert_eq!(counted(class, &report), (0, 1), "one proper close: {report:?}");
    }
    drop(api);

    // GOAWAY now and then: how a real apiserver closes HTTP/2 properly.
    let api = start(&["--goaway-chance=0.02"]);
    for (class, report) in probes(&api, &CLASSES, |_| None, 10) {
        assert_eq!(counted(class, &report).0, 0, "without a cut: {report:?}");
    }
    let (failed, reopened) = counted(Class::Http2, &probe(&api, Class::Http2, None, 100));
    assert!(failed == 0 && reopened > 0, "{failed} failed, {reopened} times GOAWAY");
}

#[test]
fn a_refused_write_is_a_failure() {
    let api = start(&[]);
    // What no apiserver does by itself: an object that is to be written goes away under the prober, once its admission is over.
    thread::scope(|scope| {
        let running = scope.spawn(|| probe(&api, Class::Write, None, 10));
        let maps = "/api/v1/namespaces/quorate-demo/configmaps";
        let mut deleted = Err(anyhow::anyhow!("the last object was never made"));
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while deleted.is_err() && std::time::Instant::now() < deadline {
            let list = api.request("GET", maps, None).unwrap();
            let last = list["items"].as_array().unwrap().iter().find(|map| map["data"]["writes"] == "59");
            if let Some(last) = last.and_then(|map| map["metadata"]["name"].as_str()) {
                let middle = last.strip_suffix("59").unwrap();
                deleted = api.request("DELETE", &format!("{maps}/{middle}40"), None).map(drop);
            }
        }
        deleted.unwrap();
        let report = running.join().unwrap();
        let tally = &report.classes[&Class::Write];
        assert!(tally.failed > 0 && tally.failed < tally.requests, "{report:?}");
        assert!(report.failures[0].error.starts_with("status 404"), "{report:?}");
    });
}
