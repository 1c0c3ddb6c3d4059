//! Verifies a file and prints what it holds, how long that took and how much memory: `verify FILE`. With `--stream` it is read from
//! front to end instead.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "that is what it is for")]

use std::fs::File;
use std::io::Read as _;
use std::process::ExitCode;
use std::time::Instant;

use etcd_snapshot::Stream;

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let streams = args.first().is_some_and(|first| first == "--stream");
    if streams {
        args.remove(0);
    }
    let [path] = args.as_slice() else {
        eprintln!("error: usage: verify [--stream] FILE");
        return ExitCode::from(2);
    };
    let begun = Instant::now();
    let done = if streams { stream(path) } else { verify(path) };
    let seconds = begun.elapsed().as_secs_f64();
    match done {
        Ok(text) => {
            println!("{text}");
            eprintln!("{seconds:.3} s, {}", memory());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {path}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn verify(path: &str) -> Result<String, Box<dyn std::error::Error>> {
    let snapshot = etcd_snapshot::verify(&File::open(path)?)?;
    Ok(serde_json::to_string_pretty(&snapshot)?)
}

fn stream(path: &str) -> Result<String, Box<dyn std::error::Error>> {
    let (mut file, mut stream) = (File::open(path)?, Stream::new());
    let mut piece = vec![0; 64 * 1024];
    loop {
        let size = file.read(&mut piece)?;
        if size == 0 {
            break;
        }
        stream.feed(piece.get(..size).unwrap_or_default())?;
    }
    Ok(format!("{:?}", stream.finish()?))
}

/// The most memory that was resident, and how much of what is now is anonymous.
fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lines = status.lines().filter(|line| ["VmHWM", "RssAnon", "RssFile"].iter().any(|name| line.starts_with(name)));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
}
