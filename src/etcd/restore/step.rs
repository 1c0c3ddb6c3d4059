//! The steps of a restore on its node, in their order. Each can be done again wherever it was killed, and the journal names the one that was
//! begun last: so the same command goes on.

use serde::{Deserialize, Serialize};

/// A step on the node that is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// A copy of the snapshot on this disk, proven.
    Keep,
    /// etcd's own tool beside it.
    Tool,
    /// The four manifests aside, and nothing of them runs any more.
    Stop,
    /// etcd's data aside.
    Aside,
    /// The snapshot as the data of a cluster of one.
    Restore,
    /// etcd back, and what it holds compared with the snapshot.
    Etcd,
    /// The apiserver back.
    Apiserver,
    /// What of quorate was under way when the snapshot was taken does nothing any more.
    Harmless,
    /// controller-manager and scheduler back.
    Controllers,
    /// The kubelet of this node restarted.
    Kubelet,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 10] = [
        Self::Keep,
        Self::Tool,
        Self::Stop,
        Self::Aside,
        Self::Restore,
        Self::Etcd,
        Self::Apiserver,
        Self::Harmless,
        Self::Controllers,
        Self::Kubelet,
    ];

    /// What it does, as it is shown when it begins.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Keep => "the snapshot is copied to this disk and proven",
            Self::Tool => "etcdutl is put beside it",
            Self::Stop => {
                "the four static pods are stopped: their manifests go aside, and nothing of them runs any more"
            }
            Self::Aside => "etcd's data goes aside",
            Self::Restore => "the snapshot becomes the data of a new cluster of one member",
            Self::Etcd => "etcd comes back, and what it holds is compared with the snapshot",
            Self::Apiserver => "the apiserver comes back",
            Self::Harmless => "what of quorate was under way in the snapshot is made harmless",
            Self::Controllers => "controller-manager and scheduler come back",
            Self::Kubelet => "the kubelet of this node is restarted",
        }
    }

    /// Whether nothing but our own folder has been touched before its end.
    pub fn touches_nothing(self) -> bool {
        self < Self::Stop
    }

    /// Its number for people, from 1.
    pub fn number(self) -> usize {
        Self::ALL.iter().position(|step| *step == self).unwrap_or_default().saturating_add(1)
    }

    /// Those from it on, itself first.
    pub fn onwards(self) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |step| *step >= self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_the_one_of_the_list_and_only_the_first_two_touch_nothing() {
        assert!(Step::ALL.is_sorted());
        assert_eq!(Step::ALL.map(Step::number), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        let harmless: Vec<Step> = Step::ALL.into_iter().filter(|step| step.touches_nothing()).collect();
        assert_eq!(harmless, [Step::Keep, Step::Tool]);
        assert_eq!(Step::Controllers.onwards().collect::<Vec<_>>(), [Step::Controllers, Step::Kubelet]);
    }

    #[test]
    fn a_journal_names_them_by_words_that_do_not_move() {
        let words = serde_json::to_string(&Step::ALL).unwrap();
        assert_eq!(
            words,
            r#"["keep","tool","stop","aside","restore","etcd","apiserver","harmless","controllers","kubelet"]"#
        );
    }
}
