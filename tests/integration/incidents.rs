//! What the pages say is there: docs/incidents.md maps incidents to tests, and every test that it names exists; ARCHITECTURE.md has every
//! part of the program on its map.

use std::fs;
use std::path::Path;

#[test]
fn every_test_that_the_incidents_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = String::new();
    for folder in ["src", "crates", "tests"] {
        read(&root.join(folder), &mut sources);
    }
    // The attribute is in one of the lines before it, and nothing ignores it, or what runs all tests runs it by its name.
    let runner = fs::read_to_string(root.join("scripts/test")).unwrap();
    let by_name = |name: &str| runner.lines().any(|line| line.ends_with(&format!("::{name}")) && !line.contains('#'));
    let is_run = |name: &str, row: &str| {
        // Properties have arguments.
        let (before, _) = sources.split_once(&format!("fn {name}(")).unwrap_or_else(|| panic!("no {name}: {row}"));
        let attributes = before.rsplit("\n\n").next().unwrap();
        assert!(attributes.contains("test]"), "{name} is no test: {row}");
        assert!(!attributes.contains("#[ignore") || by_name(name), "{name} is not run: {row}");
    };
    let page = fs::read_to_string(root.join("docs/incidents.md")).unwrap();
    let mut named = 0;
    for row in page.lines().filter(|line| line.starts_with("| ") && !line.ends_with("| test |")) {
        let names: Vec<&str> = row.split('`').filter(|text| is_test(text)).collect();
        assert!(!names.is_empty(), "no test stands for {row}");
        names.iter().for_each(|name| is_run(name, row));
        named += names.len();
    }
    let safety = fs::read_to_string(root.join("SAFETY.md")).unwrap();
    for row in safety.lines().filter(|line| line.starts_with("| ")) {
        let names = row.split('`').map(|text| text.rsplit("::").next().unwrap()).filter(|text| is_test(text));
        names.for_each(|name| is_run(name, row));
    }
    let proved = "R01 R02 R03 R04 R05 R06 R07 R09 R10 R12 R13 R14 R18 R19 R20 R21 R23 R25 R26 R27 R28 R29 R30 R31 R32 R33 R34 R35 H01 H02 H03 H04 H05 H06 H09";
    for id in proved.split(' ') {
        assert!(page.contains(&format!("| {id} |")), "{id} has no row");
    }
    assert!(named > 20, "{named}");
}

#[test]
fn every_part_of_the_program_is_on_the_map() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let (_, map) = page.split_once("## What lives where").unwrap();
    let map = map.split("\n## ").next().unwrap();
    for entry in fs::read_dir(root.join("src")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.is_file() && name != "main" && name != "lib" {
            let named = [format!("`src/{name}`"), format!("`src/{name}.rs`")];
            assert!(named.iter().any(|name| map.contains(name)), "src/{name}.rs is not on the map");
        }
    }
}

/// Test names begin with the incident's id, or are sentences.
fn is_test(text: &str) -> bool {
    text.matches('_').count() >= 3
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn read(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}
