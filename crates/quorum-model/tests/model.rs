#![expect(clippy::print_stdout, reason = "state counts and traces, for who runs it with --nocapture")]
//! The searches: in earnest nothing may be found, and with each deliberate defect something must be. `UPDATE=1` writes the files anew.

use quorum_model::{Actor, Budget, Defect, Ends, Kind, Move, Plan, Role, Scenario, State};
use stateright::{Checker, Expectation, Model, Property};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::OnceLock;

const NOTHING: Budget = Budget {
    kills: 0,
    pauses: 0,
    deletions: 0,
    power_cuts: 0,
    partitions: 0,
    lost_answers: 0,
    cordons: 0,
    drains: 0,
    releases: 0,
    kured: 0,
    drifts: 0,
    restores: 0,
};

const fn actor(kind: Kind, target: usize, runner: usize) -> Actor {
    Actor { kind, target, runner }
}

fn scenario(voters: usize, actors: &[Actor], budget: Budget) -> Scenario {
    Scenario {
        voters,
        actors: actors.to_vec(),
        budget,
        joiners: Vec::new(),
        dead: Vec::new(),
        flagged: Vec::new(),
        torn: false,
        defect: None,
        searches_ends: true,
        ends: Ends::default(),
    }
}

/// The sentinel of a node.
const fn sentinel(at: usize) -> Actor {
    actor(Kind::Sentinel, at, at)
}

/// An upgrade step and the next pod of its Job, on another node.
const ONE: [Actor; 2] = [actor(Kind::Upgrade, 0, 1), actor(Kind::Upgrade, 0, 2)];
/// The same, and the step of another node.
const TWO: [Actor; 3] = [ONE[0], ONE[1], actor(Kind::Upgrade, 1, 2)];
/// The steps of two nodes.
const EACH: [Actor; 2] = [ONE[0], TWO[2]];
/// A replacement, and its next run.
const REPLACEMENT: [Actor; 2] = [actor(Kind::Members(Plan::Replace), 2, 0), actor(Kind::Members(Plan::Replace), 2, 1)];

/// What is searched, some of it for these actors.
fn scenarios(few: &[Actor]) -> Vec<(&'static str, Scenario)> {
    let mut all = operations(few);
    all.extend(members());
    all.extend(sentinels());
    all.extend(restores());
    all.extend(torn(few));
    all
}

fn operations(few: &[Actor]) -> Vec<(&'static str, Scenario)> {
    vec![
        ("two operations", scenario(3, &[ONE[0], actor(Kind::Defragment, 1, 2)], Budget { kills: 1, ..NOTHING })),
        ("processes", scenario(3, &TWO, Budget { kills: 1, pauses: 1, ..NOTHING })),
        ("clocks", scenario(3, few, Budget { cordons: 1, drifts: 1, ..NOTHING })),
        ("pods", scenario(3, few, Budget { kills: 1, deletions: 1, ..NOTHING })),
        ("answers", scenario(3, few, Budget { kills: 1, lost_answers: 1, ..NOTHING })),
        ("power", scenario(3, &TWO, Budget { power_cuts: 1, ..NOTHING })),
        ("partitions", scenario(3, few, Budget { partitions: 1, deletions: 1, ..NOTHING })),
        ("hands", scenario(3, few, Budget { kills: 1, releases: 1, ..NOTHING })),
        ("hands, and answers", scenario(3, &ONE, Budget { kills: 1, lost_answers: 1, releases: 1, ..NOTHING })),
        ("administrators", scenario(3, few, Budget { kills: 1, cordons: 2, ..NOTHING })),
        ("administrators drain", scenario(3, few, Budget { cordons: 1, drains: 1, ..NOTHING })),
        ("administrators, two nodes", scenario(3, &EACH, Budget { cordons: 2, drains: 1, ..NOTHING })),
        ("kured", scenario(3, few, Budget { kills: 1, kured: 1, ..NOTHING })),
        (
            "other operations",
            scenario(
                3,
                &[ONE[0], actor(Kind::Reboot, 2, 0), actor(Kind::Defragment, 1, 2)],
                Budget { kills: 1, pauses: 1, ..NOTHING },
            ),
        ),
        ("five voters", scenario(5, few, Budget { power_cuts: 1, ..NOTHING })),
        (
            "five voters, one of them dead",
            Scenario { dead: vec![4], ..scenario(5, &TWO, Budget { kills: 1, ..NOTHING }) },
        ),
    ]
}

fn members() -> Vec<(&'static str, Scenario)> {
    let join = |at, runner| actor(Kind::Members(Plan::Join), at, runner);
    vec![
        (
            "two voters and a learner",
            Scenario { joiners: vec![Role::Learner], ..scenario(2, &[ONE[0], join(2, 0)], NOTHING) },
        ),
        (
            "three voters and a learner",
            Scenario { joiners: vec![Role::Learner], ..scenario(3, &[ONE[0], join(3, 0)], NOTHING) },
        ),
        (
            "joins",
            Scenario {
                joiners: vec![Role::None],
                ..scenario(3, &[join(3, 0), join(3, 1)], Budget { kills: 1, power_cuts: 1, ..NOTHING })
            },
        ),
        ("replacements", Scenario { dead: vec![2], ..scenario(3, &REPLACEMENT, Budget { kills: 1, ..NOTHING }) }),
        (
            "replacements, and one more goes",
            Scenario { dead: vec![2], ..scenario(3, &REPLACEMENT, Budget { power_cuts: 1, ..NOTHING }) },
        ),
    ]
}

fn sentinels() -> Vec<(&'static str, Scenario)> {
    let flagged = |flagged: &[usize], scenario| Scenario { flagged: flagged.to_vec(), ..scenario };
    let both = [sentinel(0), sentinel(1)];
    vec![
        ("sentinels", flagged(&[0, 1], scenario(3, &both, Budget { kills: 1, ..NOTHING }))),
        (
            "a sentinel and an upgrade",
            flagged(&[0], scenario(3, &[sentinel(0), TWO[2]], Budget { kills: 1, ..NOTHING })),
        ),
        ("a sentinel, power", flagged(&[0], scenario(3, &both[..1], Budget { power_cuts: 1, ..NOTHING }))),
        ("a sentinel, an administrator", flagged(&[0], scenario(3, &both, Budget { cordons: 1, ..NOTHING }))),
        (
            "a sentinel, a hand",
            flagged(
                &[0],
                scenario(3, &[sentinel(0), TWO[2]], Budget { kills: 1, lost_answers: 1, releases: 1, ..NOTHING }),
            ),
        ),
        (
            "a sentinel's next pod",
            flagged(&[0], scenario(3, &[sentinel(0), sentinel(0)], Budget { deletions: 1, ..NOTHING })),
        ),
    ]
}

fn restores() -> Vec<(&'static str, Scenario)> {
    let once = Budget { restores: 1, ..NOTHING };
    vec![
        ("restores", scenario(3, &ONE, once)),
        ("restores, two nodes", scenario(3, &EACH, once)),
        ("restores, a sentinel", Scenario { flagged: vec![0], ..scenario(3, &[sentinel(0), TWO[2]], once) }),
    ]
}

/// Looks of which one part is of before.
fn torn(few: &[Actor]) -> Vec<(&'static str, Scenario)> {
    let torn = |scenario| Scenario { torn: true, ..scenario };
    vec![
        ("torn looks", torn(scenario(3, few, Budget { kills: 1, ..NOTHING }))),
        ("torn looks, two nodes", torn(scenario(3, &EACH, Budget { power_cuts: 1, cordons: 1, ..NOTHING }))),
        ("torn looks, kured", torn(scenario(3, &ONE[..1], Budget { power_cuts: 1, kured: 1, ..NOTHING }))),
        (
            "torn looks, a sentinel",
            Scenario {
                flagged: vec![0],
                ..torn(scenario(3, &[sentinel(0), TWO[2]], Budget { cordons: 1, ..NOTHING }))
            },
        ),
    ]
}

/// What is searched only where there is time.
fn larger() -> Vec<(&'static str, Scenario)> {
    let pods = [sentinel(0), sentinel(0)];
    vec![
        (
            "a replacement and an upgrade",
            Scenario {
                dead: vec![2],
                ..scenario(3, &[REPLACEMENT[0], REPLACEMENT[1], ONE[0]], Budget { kills: 1, ..NOTHING })
            },
        ),
        (
            "a sentinel's next pod, one of them killed",
            Scenario { flagged: vec![0], ..scenario(3, &pods, Budget { kills: 1, deletions: 1, ..NOTHING }) },
        ),
    ]
}

/// What meets in none of the others.
fn meetings() -> Vec<(&'static str, Scenario)> {
    let defragment = actor(Kind::Defragment, 1, 2);
    let join = |runner| actor(Kind::Members(Plan::Join), 3, runner);
    let killed = Budget { kills: 1, ..NOTHING };
    let flagged = |scenario| Scenario { flagged: vec![0], ..scenario };
    vec![
        (
            "a sentinel, a hand twice",
            flagged(scenario(3, &[sentinel(0)], Budget { lost_answers: 1, power_cuts: 1, releases: 2, ..killed })),
        ),
        (
            "a sentinel's next pod, a hand",
            flagged(scenario(3, &[sentinel(0), sentinel(0)], Budget { deletions: 1, releases: 1, ..NOTHING })),
        ),
        (
            "five voters, a sentinel, kured on other nodes",
            Scenario {
                flagged: vec![0],
                ..scenario(5, &[sentinel(0), TWO[2]], Budget { kured: 1, pauses: 1, ..killed })
            },
        ),
        (
            "a sentinel and a replacement",
            Scenario {
                dead: vec![2],
                flagged: vec![0],
                ..scenario(3, &[sentinel(0), REPLACEMENT[0], REPLACEMENT[1]], Budget { pauses: 1, ..killed })
            },
        ),
        (
            "clocks, two operations",
            scenario(3, &[ONE[0], ONE[1], defragment], Budget { drifts: 1, pauses: 1, ..killed }),
        ),
        (
            "a defragmentation and a join",
            Scenario {
                joiners: vec![Role::None],
                ..scenario(3, &[defragment, join(0), join(1)], Budget { power_cuts: 1, ..killed })
            },
        ),
    ]
}

/// Searches through all of them, and says how many states there were. None of these searches ends early, so that is a fact about the model,
/// whichever thread comes first: a change of it is one that somebody should have meant. How deep they went depends on the threads.
fn search(bound: &str, all: impl IntoIterator<Item = (&'static str, Scenario)>) -> String {
    let mut page = format!(
        "# How many states the model has\n\nEach search {bound}, and the states that it came to: all that there are. Reported, not aimed at.\n\n\
         | search | states |\n|---|---|\n"
    );
    for (name, scenario) in all {
        let began = std::time::Instant::now();
        let checker = scenario.checker().threads(2).spawn_bfs().join();
        let (states, deep) = (checker.unique_state_count(), checker.max_depth());
        println!("{name}: {states} states, at most {deep} moves deep, {:.1} s", began.elapsed().as_secs_f32());
        checker.assert_properties();
        page.push_str(&format!("| {name} | {states} |\n"));
    }
    page
}

#[test]
fn nothing_is_found_in_earnest() {
    is_committed("searches.md", &search("of `make test`", scenarios(&ONE)));
}

#[test]
#[ignore = "minutes"]
fn nothing_is_found_in_earnest_where_more_meets() {
    is_committed("searches-meetings.md", &search("of what meets in no other", meetings()));
}

#[test]
#[ignore = "some hundred million states: about half an hour of one core"]
fn nothing_is_found_in_earnest_with_more_actors_and_pauses() {
    let all = scenarios(&TWO).into_iter().chain(larger());
    let paused = all.map(|(name, scenario)| {
        let budget = Budget { pauses: scenario.budget.pauses + 2, ..scenario.budget };
        (name, Scenario { budget, ..scenario })
    });
    // Not compared: whoever changes the model would have to run all of it.
    search("with more", paused);
}

/// All that act and all that befalls them in one world, which has too many orders to go through: some are drawn.
fn everything() -> Scenario {
    let actors = [
        ONE[0],
        TWO[2],
        sentinel(0),
        sentinel(1),
        actor(Kind::Defragment, 1, 2),
        actor(Kind::Members(Plan::Join), 3, 0),
    ];
    let budget = Budget {
        kills: 1,
        pauses: 2,
        deletions: 1,
        power_cuts: 1,
        partitions: 1,
        lost_answers: 1,
        cordons: 1,
        drains: 1,
        releases: 1,
        kured: 1,
        drifts: 1,
        restores: 1,
    };
    Scenario { joiners: vec![Role::None], flagged: vec![0, 1], ..scenario(3, &actors, budget) }
}

/// The same with other actors and other nodes, and with looks that are torn.
fn everything_else() -> Vec<(&'static str, Scenario)> {
    let all = everything();
    let like = |voters, flagged: &[usize], actors: &[Actor]| Scenario {
        flagged: flagged.to_vec(),
        ..scenario(voters, actors, everything().budget)
    };
    let defragment = |at| actor(Kind::Defragment, at, 0);
    let reboot = actor(Kind::Reboot, 2, 0);
    let remove = |runner| actor(Kind::Members(Plan::Remove), 2, runner);
    vec![
        ("torn looks", Scenario { torn: true, ..all }),
        ("next runs and pods", like(3, &[1], &[ONE[0], ONE[1], sentinel(1), sentinel(1), reboot, defragment(1)])),
        (
            "a replacement",
            Scenario {
                dead: vec![2],
                ..like(3, &[0, 1], &[REPLACEMENT[0], REPLACEMENT[1], sentinel(0), sentinel(1), ONE[0], defragment(1)])
            },
        ),
        (
            "a removal",
            Scenario { dead: vec![2], ..like(3, &[0], &[remove(0), remove(1), sentinel(0), ONE[0], TWO[2]]) },
        ),
        ("five voters", like(5, &[2, 3], &[ONE[0], ONE[1], TWO[2], sentinel(2), sentinel(3), defragment(4)])),
    ]
}

/// Walks that are drawn from a seed, each until nothing can happen any more or it is so long: what the first that breaks something breaks, and
/// the way there.
fn walk(scenario: &Scenario, seed: u64, walks: u32) -> Option<(Vec<&'static str>, Vec<Move>)> {
    let (began, mut drawn, mut seen) = (std::time::Instant::now(), seed, 0_u64);
    let mut below = |limit: usize| {
        // Numerical Recipes' generator: its upper half is good enough to choose by.
        drawn = drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(drawn >> 33).unwrap_or_default() % limit.max(1)
    };
    for _ in 0..walks {
        let (mut state, mut way) = (scenario.init_states().remove(0), Vec::new());
        for _ in 0..LONG {
            let mut moves = Vec::new();
            scenario.actions(&state, &mut moves);
            let may = |taken: Move| Some((taken, scenario.next_state(&state, taken)?));
            let next: Vec<(Move, State)> = moves.into_iter().filter_map(may).collect();
            let Some((taken, next)) = next.get(below(next.len())) else { break };
            state = *next;
            way.push(*taken);
            seen += 1;
            let broken = broken(scenario, &state);
            if !broken.is_empty() {
                return Some((broken, way));
            }
        }
    }
    println!("seed {seed}: {seen} states in {walks} walks, {:.1} s", began.elapsed().as_secs_f32());
    None
}

/// Longer than any search has to go.
const LONG: u32 = 200;

#[test]
fn nothing_is_found_on_the_way_or_at_its_ends_where_all_actors_meet() {
    assert_eq!(walk(&everything(), 1, 10_000), None);
    // The walks come to where something could be found, at once and at their ends.
    for defect in [Defect::ExpiryHandsOver, Defect::ReleasedIsForEver] {
        let scenario = Scenario { defect: Some(defect), searches_ends: shows_in_the_future(defect), ..everything() };
        assert_ne!(walk(&scenario, 1, 20_000), None, "{defect:?}");
    }
}

#[test]
#[ignore = "an hour of one core"]
fn nothing_is_found_on_more_ways_where_all_actors_meet() {
    for seed in 2..22 {
        assert_eq!(walk(&everything(), seed, 100_000), None, "seed {seed}");
        for (name, scenario) in everything_else() {
            assert_eq!(walk(&scenario, seed, 10_000), None, "{name}, seed {seed}");
        }
    }
}

/// Which of the searches has what it takes for a defect to do harm.
const fn scenario_of(defect: Defect) -> &'static str {
    match defect {
        Defect::HostNotLookedAt | Defect::DeadlineNotAsked | Defect::NoPrecondition | Defect::GivenBackOnReady => {
            "processes"
        }
        Defect::NoMargin | Defect::DeadlineFromTheAnswer => "clocks",
        Defect::MissingPodHasEnded => "pods",
        Defect::JudgedBeforeTheLease | Defect::TargetCountedAsUp => "power",
        Defect::UnreachableHasEnded => "partitions",
        Defect::ReleaseCountsAtOnce => "hands",
        Defect::ForeignCordonIgnored | Defect::RecordOutlivesTheCordon => "administrators",
        Defect::LooksBeforeTheAnswer => "torn looks",
        Defect::KuredIgnored | Defect::WhoHasWaitedDoesNotAdopt => "kured",
        Defect::ExpiryHandsOver
        | Defect::HalfDoneIsTakenOver
        | Defect::StaleBlockOfKuredStays
        | Defect::LocksInEitherOrder => "two operations",
        Defect::WholenessNotAsked => "five voters, one of them dead",
        Defect::FileOfTheDeadIsNotLookedFor | Defect::FileBeforeTheLease | Defect::FileNotAnnounced => "sentinels",
        Defect::KuredThatHasLookedIsForgotten | Defect::SentinelWaitsForEver => "a sentinel and an upgrade",
        Defect::ReleasedIsForEver => "a sentinel, a hand",
        Defect::VerdictNotWatched | Defect::FileSurvivesTheBoot | Defect::GateGivenBackOnReady => "a sentinel, power",
        Defect::LearnerCountedAsVoter => "two voters and a learner",
        Defect::JoinHoldsNobody => "three voters and a learner",
        Defect::LearnerMayBeNeeded | Defect::StepsOfAPlanNotJudged | Defect::JoinHoldsRemovals => "joins",
        Defect::RestoreKeepsTheLeases | Defect::RestoreDoesNotWait => "restores",
        Defect::RestoreLeavesTheUnits => "restores, two nodes",
        Defect::RestoreLeavesTheGate => "restores, a sentinel",
    }
}

/// Whether it shows only in what can be done from a state: all others are broken at once, without a look into the future.
const fn shows_in_the_future(defect: Defect) -> bool {
    matches!(
        defect,
        Defect::StaleBlockOfKuredStays
            | Defect::LocksInEitherOrder
            | Defect::WhoHasWaitedDoesNotAdopt
            | Defect::ReleasedIsForEver
            | Defect::SentinelWaitsForEver
            | Defect::JoinHoldsRemovals
    )
}

/// What was found is what the file says.
fn is_committed(file: &str, page: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("UPDATE").is_some() {
        assert!(std::fs::write(&file, page).is_ok());
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap_or_default(), page, "UPDATE=1 writes {} anew", file.display());
}

/// The properties that a state breaks.
fn broken(scenario: &Scenario, state: &State) -> Vec<&'static str> {
    let properties = scenario.properties().into_iter();
    properties.filter(|one| is_always(one) && !(one.condition)(scenario, state)).map(|one| one.name).collect()
}

fn is_always(property: &Property<Scenario>) -> bool {
    matches!(property.expectation, Expectation::Always)
}

/// A search for the first state that breaks something: in the order of one thread none is nearer. stateright alone tells the last that it
/// finds in a block of states.
struct Hunt {
    scenario: Scenario,
    first: OnceLock<State>,
}

impl Model for Hunt {
    type State = State;
    type Action = Move;

    fn init_states(&self) -> Vec<State> {
        self.scenario.init_states()
    }

    fn actions(&self, state: &State, moves: &mut Vec<Move>) {
        self.scenario.actions(state, moves);
    }

    fn next_state(&self, state: &State, taken: Move) -> Option<State> {
        self.scenario.next_state(state, taken)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::<Self>::always(HUNTED, |hunt, state| {
            broken(&hunt.scenario, state).is_empty() || hunt.first.get_or_init(|| *state) != state
        })]
    }
}

const HUNTED: &str = "nothing is broken";

/// The shortest way to a state that breaks something.
fn way(scenario: &Scenario) -> Option<Vec<Move>> {
    let hunt = Hunt { scenario: scenario.clone(), first: OnceLock::new() };
    let checker = hunt.checker().spawn_bfs().join();
    Some(checker.discovery(HUNTED)?.into_actions())
}

/// What is broken first, and the shortest way there.
fn found(defect: Defect) -> Option<(Vec<&'static str>, Vec<Move>)> {
    let (_, scenario) = scenarios(&ONE).into_iter().find(|(name, _)| *name == scenario_of(defect))?;
    let scenario = Scenario { defect: Some(defect), searches_ends: shows_in_the_future(defect), ..scenario };
    let shortest = way(&scenario)?;
    let properties = replay(&scenario, &shortest)?;
    Some((properties, shortest))
}

/// What the last of these moves breaks; those before it break nothing.
fn replay(scenario: &Scenario, moves: &[Move]) -> Option<Vec<&'static str>> {
    let mut state = scenario.init_states().remove(0);
    for (before, taken) in moves.iter().enumerate() {
        let earlier = broken(scenario, &state);
        assert!(earlier.is_empty(), "{:?}: {before} moves break {earlier:?}", scenario.defect);
        state = scenario.next_state(&state, *taken)?;
    }
    Some(broken(scenario, &state))
}

#[test]
fn each_defect_is_found() {
    let mut page = String::from(
        "# What the model finds when something is done wrong\n\n\
         Each deliberate defect of `src/defect.rs`, what it breaks first, and the shortest way there: nothing shorter breaks anything that\n\
         is looked for. What can be done from a state is tried out only for the defects that break nothing else. Numbers are of actors and\n\
         nodes, both from 0; made by `UPDATE=1 cargo test -p quorum-model`.\n",
    );
    let mut harmless = Vec::new();
    let mut breakable = BTreeSet::new();
    for defect in Defect::ALL {
        let began = std::time::Instant::now();
        let Some((properties, moves)) = found(defect) else {
            harmless.push(defect);
            continue;
        };
        let scenario = scenario_of(defect);
        println!("{defect:?}: {properties:?}, {} moves, {:.1} s", moves.len(), began.elapsed().as_secs_f32());
        let moves: Vec<String> = moves.iter().map(|one| format!("{one:?}")).collect();
        let moves = if moves.is_empty() { "(no move)".to_owned() } else { moves.join(", ") };
        if let [only] = properties[..] {
            breakable.insert(only);
        }
        let properties = properties.join("\" and \"");
        page.push_str(&format!("\n## {defect:?}\n\nBreaks \"{properties}\", in \"{scenario}\":\n\n{moves}\n"));
    }
    assert!(harmless.is_empty(), "nothing comes of {harmless:?}");
    // A property that no defect breaks by itself may be one that cannot be broken, or says nothing of its own.
    let scenario = scenario(3, &ONE, NOTHING);
    let all: BTreeSet<_> = scenario.properties().iter().filter(|one| is_always(one)).map(|one| one.name).collect();
    assert_eq!(breakable, all);
    is_committed("defects.md", &page);
}
