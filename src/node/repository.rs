//! The line of a package source that names a Kubernetes minor version: found and rewritten, everything else kept as it is.
//! Pure; both forms of apt's sources, one line an entry and deb822.

use crate::version::Version;

/// What stands before the minor version in every repository laid out like pkgs.k8s.io.
const LAYOUT: &str = "/core:/stable:/v";

/// A minor version, such as (1, 36).
pub(super) type Minor = (u16, u16);

/// The form of a file of package sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `deb [options] URI suite`, one line an entry.
    Lines,
    /// `Key: value` in stanzas.
    Deb822,
}

/// The Kubernetes minor versions that a file's entries in force name.
pub(super) fn minors(text: &str, form: Form) -> Vec<Minor> {
    let in_force = lines(text, form).into_iter().filter(|(in_force, _)| *in_force);
    let mut found: Vec<Minor> = in_force.filter_map(|(_, line)| place(line).map(|(_, _, minor)| minor)).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// The file with `from` replaced by the minor version of `to`, in entries in force only.
pub(super) fn rewritten(text: &str, form: Form, from: Minor, to: Version) -> String {
    let line = |(in_force, line): (bool, &str)| match place(line) {
        Some((start, end, minor)) if in_force && minor == from => {
            let (head, tail) = (line.get(..start).unwrap_or(""), line.get(end..).unwrap_or(""));
            format!("{head}{}.{}{tail}", to.major, to.minor)
        }
        _ => line.to_owned(),
    };
    lines(text, form).into_iter().map(line).collect()
}

/// All lines, each with whether it counts: comments do not, nor does a stanza with `Enabled: no`.
fn lines(text: &str, form: Form) -> Vec<(bool, &str)> {
    let all: Vec<&str> = text.split_inclusive('\n').collect();
    let stanzas: Vec<&[&str]> = match form {
        Form::Lines => vec![&all],
        Form::Deb822 => all.split_inclusive(|line| line.trim().is_empty()).collect(),
    };
    let off = |stanza: &[&str]| {
        stanza.iter().filter_map(|line| line.split_once(':')).any(|(key, value)| {
            let value = value.trim().to_ascii_lowercase();
            // apt's own words for no (apt-pkg/contrib/strutl.cc, StringToBool).
            key.eq_ignore_ascii_case("enabled")
                && matches!(value.as_str(), "no" | "false" | "without" | "off" | "disable" | "0")
        })
    };
    stanzas
        .into_iter()
        .flat_map(|stanza| {
            let on = form == Form::Lines || !off(stanza);
            stanza.iter().map(move |line| (on && !line.trim_start().starts_with('#'), *line))
        })
        .collect()
}

/// Where the minor version stands in a line: start, end, and what it is.
fn place(line: &str) -> Option<(usize, usize, Minor)> {
    let start = line.find(LAYOUT)? + LAYOUT.len();
    let rest = line.get(start..)?;
    let length = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (major, minor) = rest.get(..length)?.split_once('.')?;
    Some((start, start + length, (major.parse().ok()?, minor.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to() -> Version {
        "v1.36.3".parse().unwrap()
    }

    #[test]
    fn only_the_minor_of_the_line_changes() {
        let text = "# was https://pkgs.k8s.io/core:/stable:/v1.34/deb/\n\
                    deb [arch=amd64 signed-by=/etc/apt/keyrings/kubernetes-apt-keyring.gpg] \
                    https://pkgs.k8s.io/core:/stable:/v1.35/deb/ /\n\
                    deb https://pkgs.k8s.io/addons:/cri-o:/stable:/v1.35/deb/ /\n";
        assert_eq!(minors(text, Form::Lines), [(1, 35)]);
        let after = rewritten(text, Form::Lines, (1, 35), to());
        assert_eq!(after, text.replace("core:/stable:/v1.35", "core:/stable:/v1.36"));
        assert!(after.contains("v1.34/deb") && after.contains("cri-o:/stable:/v1.35"));
        assert_eq!(rewritten(&after, Form::Lines, (1, 35), to()), after);
    }

    #[test]
    fn the_line_of_the_lab_and_of_a_mirror() {
        let lab = "deb [trusted=yes] file:/srv/apt/core:/stable:/v1.35/deb /\n";
        assert_eq!(rewritten(lab, Form::Lines, (1, 35), to()), lab.replace("1.35", "1.36"));
        let mirror = "deb http://mirror/isv:/kubernetes:/core:/stable:/v1.9/deb/ /";
        assert_eq!(minors(mirror, Form::Lines), [(1, 9)]);
        assert_eq!(rewritten(mirror, Form::Lines, (1, 9), to()), mirror.replace("v1.9/", "v1.36/"));
    }

    #[test]
    fn deb822_with_a_key_in_it_and_a_stanza_that_is_off() {
        let text = "Types: deb\nURIs: https://pkgs.k8s.io/core:/stable:/v1.35/deb/\nSuites: /\nSigned-By:\n -----BEGIN PGP\n .\n\
                    \nEnabled: no\nTypes: deb\nURIs: https://pkgs.k8s.io/core:/stable:/v1.34/deb/\nSuites: /\n";
        assert_eq!(minors(text, Form::Deb822), [(1, 35)]);
        assert_eq!(rewritten(text, Form::Deb822, (1, 35), to()), text.replace("v1.35", "v1.36"));
        assert_eq!(rewritten(text, Form::Deb822, (1, 34), to()), text);
    }

    #[test]
    fn what_names_no_minor_is_left_alone() {
        for text in
            ["", "deb https://deb.debian.org/debian trixie main\n", "deb https://x/core:/stable:/vNEXT/deb/ /\n"]
        {
            assert!(minors(text, Form::Lines).is_empty(), "{text}");
            assert_eq!(rewritten(text, Form::Lines, (1, 35), to()), text);
        }
    }
}
