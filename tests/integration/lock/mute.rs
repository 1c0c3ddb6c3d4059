//! A connection on which answers are late, and can be lost: what was asked is carried out all the same.

use anyhow::Result;
use lab::api::Api;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How late an answer is: long enough to see what was carried out, and to lose the answer to just that.
const LATE: Duration = Duration::from_millis(500);

/// In front of an apiserver, on its own address. It lives as long as the test's process.
pub(super) struct Mute {
    pub(super) kubeconfig: PathBuf,
    loses: Arc<AtomicBool>,
}

impl Mute {
    pub(super) fn before(api: &Api) -> Result<Self> {
        let url = api.url(1)?.to_owned();
        let server = url.trim_start_matches("https://").to_owned();
        let listener = TcpListener::bind((api.address(1), 0))?;
        let config = std::fs::read_to_string(api.kubeconfig()?)?;
        let own = format!("https://{}", listener.local_addr()?);
        anyhow::ensure!(config.contains(&url), "the kubeconfig names another server than {url}");
        let kubeconfig = api.pki_dir().join(format!("mute-{}.conf", listener.local_addr()?.port()));
        std::fs::write(&kubeconfig, config.replace(&url, &own))?;
        let loses = Arc::new(AtomicBool::new(false));
        let lost = Arc::clone(&loses);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&server) else { continue };
                let (Ok(back), Ok(forth)) = (client.try_clone(), server.try_clone()) else { continue };
                std::thread::spawn(move || pass(client, server, || true));
                let lost = Arc::clone(&lost);
                std::thread::spawn(move || {
                    pass(forth, back, || {
                        std::thread::sleep(LATE);
                        !lost.load(Ordering::Relaxed)
                    });
                });
            }
        });
        Ok(Self { kubeconfig, loses })
    }

    /// Once `done` says so, loses the answers that are on their way; those to later questions arrive.
    pub(super) fn lose_the_answer(&self, done: impl Fn() -> bool + Send + 'static) {
        let loses = Arc::clone(&self.loses);
        std::thread::spawn(move || {
            while !done() {
                std::thread::sleep(Duration::from_millis(10));
            }
            loses.store(true, Ordering::Relaxed);
            std::thread::sleep(LATE);
            loses.store(false, Ordering::Relaxed);
        });
    }
}

/// Passes bytes on until one side ends, or `goes_on` says no.
fn pass(mut from: TcpStream, mut to: TcpStream, goes_on: impl Fn() -> bool) {
    let mut buffer = [0; 65536];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let Some(bytes) = buffer.get(..count).filter(|_| goes_on()) else { break };
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
}
