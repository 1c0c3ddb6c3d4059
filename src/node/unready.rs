//! What must be well before a control plane node is touched for the first time. The verdict that allowed it is minutes old by then,
//! and whoever got it may be gone; these few are asked from the node itself. Never of a step that is resumed: what is broken then may
//! be what it is there to finish.

use super::command::Deadline;
use super::handover::ask_peers;
use super::manifests::Manifests;
use super::probe::{Probe, not_ready};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// How long what passes by itself may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const POLL: Duration = Duration::from_secs(1);

/// What is not ready, each in a sentence: the node's own etcd, if it says so itself, and any of the peers. Those were ready when the
/// order was given; one that is not has failed since, and this node must not be the second.
pub(super) async fn unready(
    own: SocketAddr,
    manifests: &Manifests,
    peers: &[IpAddr],
    probe: &Probe,
    deadline: Deadline,
) -> Vec<String> {
    let until = Deadline::after(deadline.within(PATIENCE));
    loop {
        let found = look(own, manifests, peers, probe).await;
        if found.is_empty() || until.passed() {
            return found;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn look(own: SocketAddr, manifests: &Manifests, peers: &[IpAddr], probe: &Probe) -> Vec<String> {
    let (_, said) = ask_peers(peers, own.port(), probe).await;
    let mut found: Vec<String> =
        said.into_iter().map(|said| format!("another apiserver is not ready any more: {said}")).collect();
    if let Some(url) = etcd_ready_url(manifests) {
        match not_ready(&url).await {
            Ok(None) => {}
            Ok(Some(said)) => found.push(format!("this node's etcd is not ready: {said}")),
            Err(error) => found.push(format!("this node's etcd: {error}")),
        }
    }
    found
}

/// Where this node's etcd says whether it is ready; none without one.
pub(super) fn etcd_ready_url(manifests: &Manifests) -> Option<String> {
    let etcd = manifests.pods.get("etcd")?;
    let url = etcd.flag("listen-metrics-urls").and_then(|urls| urls.split(',').next());
    Some(format!("{}/readyz", url.unwrap_or("http://127.0.0.1:2381")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::manifests;
    use std::io::{Read, Write};

    /// The manifests of a node whose etcd listens here.
    fn etcd_at(url: &str) -> Manifests {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join(manifests::FOLDER);
        std::fs::create_dir_all(&folder).unwrap();
        let text = format!(
            "metadata: {{name: etcd}}\nspec: {{containers: [{{name: etcd, image: 'x/etcd:3', command: [etcd, '--listen-metrics-urls={url}']}}]}}\n"
        );
        std::fs::write(folder.join("etcd.yaml"), text).unwrap();
        manifests::read(root.path()).unwrap()
    }

    /// Answers one question with a status.
    fn answering(status: &'static str) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = [0; 1024];
            let read = stream.read(&mut question).unwrap();
            assert!(question[..read].starts_with(b"GET /readyz "));
            let body = "[-]linearizable_read failed: reason";
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
                .unwrap();
        });
        format!("http://{address}")
    }

    fn asked(manifests: &Manifests, peers: &[IpAddr]) -> Vec<String> {
        // main does it for the program; another test may have been first.
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            assert!(rustls::crypto::CryptoProvider::get_default().is_some());
        }
        let nothing = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(look("127.0.0.1:1".parse().unwrap(), manifests, peers, &Probe::new(nothing.path())))
    }

    #[test]
    fn an_etcd_that_says_it_is_not_ready_stops_a_first_touch() {
        let said = asked(&etcd_at(&answering("503 Service Unavailable")), &[]);
        assert_eq!(said, ["this node's etcd is not ready: [-]linearizable_read failed: reason"]);
    }

    #[test]
    fn an_etcd_that_says_nothing_stops_nothing() {
        // Ready; one of a version that knows no such question; none that answers; none at all.
        for status in ["200 OK", "404 Not Found"] {
            assert!(asked(&etcd_at(&answering(status)), &[]).is_empty(), "{status}");
        }
        assert!(asked(&etcd_at("http://127.0.0.1:1"), &[]).is_empty());
        assert!(asked(&Manifests::default(), &[]).is_empty());
    }

    #[test]
    fn each_peer_must_be_ready_not_one_of_them() {
        let said = asked(&Manifests::default(), &["127.0.0.2".parse().unwrap(), "127.0.0.3".parse().unwrap()]);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains("not ready any more: 127.0.0.2: "), "{said:?}");
    }
}
