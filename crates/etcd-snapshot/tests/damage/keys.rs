//! The walk over keys.

use std::collections::BTreeMap;

use etcd_snapshot::{Error, Fault, Limits, Part, keys};

use crate::image::{Image, KEPT};

/// Each key with its revision and value, and how many there are.
type Shown = (Option<u64>, BTreeMap<Vec<u8>, (i64, Vec<u8>)>);

fn shown(image: &Image, limits: Limits) -> Result<Shown, Error> {
    let (mut found, mut last) = (BTreeMap::new(), Vec::new());
    let count = keys(&image.0, limits, &mut |part| match part {
        Part::Key { key, revision } => {
            last = key.to_vec();
            assert_eq!(found.insert(last.clone(), (revision, Vec::new())), None, "{key:?} is shown twice");
        }
        Part::Value(piece) => found.get_mut(&last).expect("a value without a key").1.extend_from_slice(piece),
    })?;
    Ok((count, found))
}

#[test]
fn each_key_is_shown_once_in_one_go_or_in_many() {
    for (name, bytes) in KEPT {
        let image = Image(bytes.to_vec());
        let snapshot = image.verify().unwrap();
        let (count, all) = shown(&image, Limits::default()).unwrap();
        assert_eq!((count, count), (snapshot.keys, Some(all.len() as u64)), "{name}");
        assert!(all.values().all(|(revision, _)| (1..=snapshot.revision).contains(revision)), "{name}");
        let small = Limits::default().with_key_table(128);
        let many = shown(&image, small.with_passes(u64::MAX)).unwrap();
        assert_eq!(many, (count, all), "{name}");
        if count > Some(7) {
            assert_eq!(shown(&image, small.with_passes(1)).unwrap().0, None, "{name}");
        }
    }
}

#[test]
fn a_record_that_etcd_does_not_write_is_told() {
    let mut image = Image::kept("used-3.6");
    let leaf = image.child(image.keys(), 0);
    let value_at = image.elements(leaf)[0].value_at;
    // Its key is field 1, its value field 5: the one becomes the other.
    assert_eq!(image.0[value_at], 0x0a);
    let behind_key = value_at + 2 + usize::from(image.0[value_at + 1]);
    let value_tag = behind_key + image.0[behind_key..].iter().position(|byte| *byte == 0x2a).unwrap();
    image.put(value_at, [0x2a]).put(value_tag, [0x0a]).seal_trailer();
    let error = shown(&image, Limits::default()).unwrap_err();
    assert!(matches!(error.fault, Fault::Record(why) if why.contains("its value before its key")), "{error}");
    image.put(value_tag, [0x2a]).seal_trailer();
    let (_, fault) = image.fault();
    assert!(matches!(fault, Fault::Record(why) if why.contains("two values")), "{fault}");
}
