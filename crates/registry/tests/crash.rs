//! A command killed in mid-change leaves the state before it; one killed after its commit leaves the state after it; and
//! neither leaves a lock.

mod common;

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};

use common::{Place, add, files, guest, number, player, random, role};
use hpvm_model::GuestConfig;
use hpvm_registry::{Access, Registry, Selector};

const GUESTS: u32 = 20;

/// Plays a writer that is killed; in the test's own process there is nothing to play.
#[test]
fn play() {
    match role() {
        Some((role, path)) if role == "middle" => stop_in_the_middle(&path),
        Some((_, path)) => write_generations(&path),
        None => {}
    }
}

/// Changes every guest in each change, and says the number of each change that is committed.
fn write_generations(path: &Path) {
    let mut generation = generation_of(&Registry::open(path, Access::ReadOnly).unwrap());
    loop {
        generation += 1;
        let mut registry = Registry::open(path, Access::ReadWrite).unwrap();
        let change = registry.change().unwrap();
        for n in 1..=GUESTS {
            let changed = of_generation(n, generation);
            change.update(&changed, &files(&changed)).unwrap();
        }
        change.commit().unwrap();
        println!("committed {generation}");
    }
}

fn stop_in_the_middle(path: &Path) {
    let mut registry = Registry::open(path, Access::ReadWrite).unwrap();
    let change = registry.change().unwrap();
    change.purge(number(1)).unwrap_err();
    for n in 2..=GUESTS {
        change.remove(number(n), jiff::Timestamp::MAX).unwrap();
        change.purge(number(n)).unwrap();
    }
    println!("in the middle");
    // Ends when the test kills us, or is gone and with it the other end of the pipe.
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// The guest with its generation as label, and with fewer devices in odd ones.
fn of_generation(n: u32, generation: u64) -> GuestConfig {
    let mut guest = guest(n);
    guest.label = generation.to_string().parse().unwrap();
    if generation % 2 == 1 {
        guest.storage.truncate(2);
    }
    guest
}

/// The generation that all guests have; fails when they differ, or when a part of one is from another.
fn generation_of(registry: &Registry) -> u64 {
    let guests = registry.all().unwrap();
    let generation: u64 = guests[0].label.as_str().parse().unwrap();
    let expected: Vec<GuestConfig> = (1..=GUESTS).map(|n| of_generation(n, generation)).collect();
    assert_eq!(guests, expected);
    generation
}

fn place_with_guests() -> Place {
    let place = Place::new();
    let mut registry = place.open();
    for n in 1..=GUESTS {
        add(&mut registry, &of_generation(n, 0));
    }
    place
}

/// A player whose lines are read; killed on drop, so that a failed test leaves none behind.
struct Player {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Player {
    fn start(role: &str, place: &Place) -> Player {
        let mut child = player("play", role, &place.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Player { child, lines }
    }

    /// The next line with this word; the lines of the test program itself are passed over.
    fn wait_for(&mut self, word: &str) -> Option<String> {
        self.lines.by_ref().map_while(Result::ok).find(|line| line.contains(word))
    }

    /// Kills it by SIGKILL, and returns the last line with this word that it wrote before.
    fn kill(mut self, word: &str) -> Option<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::iter::from_fn(|| self.wait_for(word)).last()
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn generation_in(line: &str) -> u64 {
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_killed_writer_leaves_the_old_state_or_the_new_one() {
    let place = place_with_guests();
    // How many commits each writer lives for, at least.
    let bytes = [random(), random()].map(u64::to_ne_bytes).concat();
    let lives: Vec<u8> = bytes.into_iter().map(|byte| byte % 12).collect();
    println!("lives {lives:?}");
    for life in lives {
        let mut writer = Player::start("generations", &place);
        let mut committed = 0;
        for _ in 0..=life {
            committed = generation_in(&writer.wait_for("committed").expect("a writer that writes"));
        }
        committed = writer.kill("committed").as_deref().map_or(committed, generation_in);
        let registry = place.reader();
        let found = generation_of(&registry);
        assert!(
            found == committed || found == committed + 1,
            "{committed} was said, {found} found"
        );
        assert_eq!(registry.check().unwrap(), Vec::<String>::new());
    }
}

#[test]
fn a_change_killed_in_the_middle_never_was() {
    let place = place_with_guests();
    let mut writer = Player::start("middle", &place);
    writer.wait_for("in the middle").expect("a writer that writes");
    assert_eq!(generation_of(&place.reader()), 0);
    writer.kill("");
    let mut registry = place.open();
    assert_eq!(generation_of(&registry), 0);
    // The lock is gone with its holder.
    let change = registry.change().unwrap();
    change.remove(number(2), jiff::Timestamp::MAX).unwrap();
    change.commit().unwrap();
    assert_eq!(place.reader().guest(&Selector::Number(number(2))).unwrap(), None);
}
