//! Has the disk take a file while it is still being written, so that there is little left to wait for at its end.

use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

/// Bytes that are written before the disk is asked to take them. Little enough that a slow disk is at work early; and whoever writes waits
/// while the file system commits, so not less.
const EACH: u64 = 256 * 1024 * 1024;

/// A file that is being written, and the thread that waits for its disk.
pub(super) struct Flush {
    wake: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
    written: u64,
}

impl Flush {
    /// Begins.
    ///
    /// # Errors
    /// When the file cannot be opened once more, or there is no thread to be had.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        Self::by(move || file.sync_data())
    }

    fn by(sync: impl Fn() -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let thread = thread::Builder::new().name("flush".to_owned()).spawn(move || each(&woken, sync))?;
        Ok(Self { wake, thread, written: 0 })
    }

    /// So many more bytes were written.
    ///
    /// # Errors
    /// When the disk did not take some that were written before.
    pub(super) fn more(mut self, bytes: u64) -> io::Result<Self> {
        self.written = self.written.saturating_add(bytes);
        if self.written < EACH {
            return Ok(self);
        }
        self.written = 0;
        match self.wake.try_send(()) {
            // While it waits for the disk it is woken once at most.
            Ok(()) | Err(TrySendError::Full(())) => Ok(self),
            // It has ended, and not well.
            Err(TrySendError::Disconnected(())) => self.end().end().and(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Everything was written: the disk is asked for the last of it.
    pub(super) fn end(self) -> Ending {
        Ending(self.thread)
    }
}

/// The last of a file, on its way to the disk.
pub(super) struct Ending(JoinHandle<io::Result<()>>);

impl Ending {
    /// Waits until the disk has taken it.
    ///
    /// # Errors
    /// When the disk did not take all of it.
    pub(super) fn end(self) -> io::Result<()> {
        self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Flushes each time it is woken, and once more at the end.
fn each(woken: &Receiver<()>, sync: impl Fn() -> io::Result<()>) -> io::Result<()> {
    while woken.recv().is_ok() {
        sync()?;
    }
    sync()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn what_was_written_is_flushed_at_the_end_and_now_and_then_before() {
        let (count, (said, heard)) = (Arc::new(AtomicUsize::new(0)), sync_channel(0));
        let counted = Arc::clone(&count);
        let mut flush = Flush::by(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            said.send(()).map_err(io::Error::other)
        })
        .unwrap();
        for _ in 0..3 {
            flush = flush.more(EACH / 2).unwrap();
        }
        // The first flush is under way; what is written meanwhile waits for nobody.
        heard.recv().unwrap();
        flush = flush.more(EACH / 4).unwrap();
        let ending = flush.end();
        heard.recv().unwrap();
        ending.end().unwrap();
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_disk_that_does_not_take_it_is_told_at_once_or_at_the_end() {
        let full = || Err(io::ErrorKind::StorageFull.into());
        let told = |ended: io::Result<()>| assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::StorageFull);
        told(Flush::by(full).unwrap().end().end());
        let mut flush = Flush::by(full).unwrap();
        loop {
            match flush.more(EACH) {
                Ok(more) => flush = more,
                Err(error) => break told(Err(error)),
            }
            thread::yield_now();
        }
    }
}
