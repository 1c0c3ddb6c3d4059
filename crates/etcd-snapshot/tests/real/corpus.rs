//! The kept snapshots in fuzz/corpus: small ones of real etcd.

use std::fs;
use std::path::Path;

use lab::binaries::EtcdVersion;

use crate::member::Lab;

/// `UPDATE=1` makes them anew; they are of no use to anybody else, so that is seldom needed.
#[test]
fn the_kept_snapshots_can_be_made_anew() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    if std::env::var_os("UPDATE").is_none() {
        for kept in ["fresh-3.5", "used-3.5", "used-3.6", "used-3.7"] {
            assert!(corpus.join(format!("{kept}.db")).is_file(), "{kept}: make it with UPDATE=1");
        }
        return;
    }
    for version in EtcdVersion::ALL {
        let series = version.number().rsplit_once('.').unwrap().0;
        let mut lab = Lab::start(version);
        if version == EtcdVersion::V3_5 {
            fs::copy(lab.snapshot(), corpus.join(format!("fresh-{series}.db"))).unwrap();
        }
        lab.put("registry/pods/default/a", 90, 60);
        lab.put("registry/large", 1, 9000);
        lab.put("registry/pods/default/b", 30, 300);
        lab.delete("registry/pods/default/a0001");
        lab.compact(lab.revision() - 1);
        lab.call("/v3/maintenance/defragment", &serde_json::json!({}));
        // Two writes more, so that some pages are free.
        lab.put("registry/pods/default/c", 3, 60);
        lab.snapshot();
        lab.delete("registry/pods/default/c00001");
        fs::copy(lab.snapshot(), corpus.join(format!("used-{series}.db"))).unwrap();
    }
}
