//! The row about many at once: eight processes create, change and list, and nothing is lost.

use std::thread;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::Effort;
use super::house::House;
use super::report::{Row, Verdict};

const PROCESSES: usize = 8;
/// Commands of one round of one process.
const COMMANDS: usize = 5;
/// Each so many rounds a process also gives the shared guest a disk.
const SHARED_EVERY: usize = 5;

pub(super) fn measure(effort: &Effort) -> Result<Vec<Row>> {
    let house = House::new()?;
    let rounds = effort.amount(25, 5);
    house.run(&["hpvmcreate", "-P", "shared"])?;
    let begin = Instant::now();
    let results: Vec<Result<()>> = thread::scope(|scope| {
        let house = &house;
        let work = |process| scope.spawn(move || one_of_many(house, process, rounds));
        let workers: Vec<_> = (0..PROCESSES).map(work).collect();
        let joined = workers.into_iter().map(thread::ScopedJoinHandle::join);
        joined.map(|result| result.unwrap_or_else(|_| bail!("a thread ended early"))).collect()
    });
    let took = begin.elapsed();
    results.into_iter().collect::<Result<Vec<()>>>()?;
    verify(&house, rounds)?;
    let count = PROCESSES * rounds * COMMANDS;
    Ok(vec![Row {
        what: "8 processes creating, changing and listing at once, 1,000 operations".into(),
        peer: String::new(),
        target: "no error, no lost update",
        measured: format!("none of {count}, in {:.1} s", took.as_secs_f64()),
        verdict: Verdict::Met,
    }])
}

fn one_of_many(house: &House, process: usize, rounds: usize) -> Result<()> {
    for round in 0..rounds {
        let name = format!("own{process}-{round}");
        house.run(&["hpvmcreate", "-P", &name, "-l", "first"])?;
        house.run(&["hpvmmodify", "-P", &name, "-l", "second"])?;
        house.run(&["hpvmstatus"])?;
        if round % SHARED_EVERY == 0 {
            let disk = house.empty_disk(&format!("shared-{process}-{round}"))?;
            let device = format!("disk:avio_stor::file:{}", disk.display());
            house.run(&["hpvmmodify", "-P", "shared", "-a", &device])?;
        } else {
            house.run(&["hpvmstatus", "-P", &name])?;
        }
        house.run(&["hpvmmodify", "-P", &name, "-l", &last_label(process, round)])?;
    }
    Ok(())
}

fn last_label(process: usize, round: usize) -> String {
    format!("last of {process} {round}")
}

fn verify(house: &House, rounds: usize) -> Result<()> {
    let text = house.run(&["hpvmstatus", "--json"])?;
    let json: Value = serde_json::from_str(&text)?;
    for process in 0..PROCESSES {
        for round in 0..rounds {
            let label = last_label(process, round);
            ensure!(holds_text(&json, &label), "the update to the label '{label}' is lost");
            if round % SHARED_EVERY == 0 {
                let disk = house.root.join(format!("disks/shared-{process}-{round}"));
                let disk = disk.to_string_lossy();
                ensure!(holds_text(&json, &disk), "the disk '{disk}' of the shared guest is lost");
            }
        }
    }
    Ok(())
}

fn holds_text(json: &Value, text: &str) -> bool {
    match json {
        Value::String(found) => found == text,
        Value::Array(items) => items.iter().any(|item| holds_text(item, text)),
        Value::Object(fields) => fields.values().any(|field| holds_text(field, text)),
        _ => false,
    }
}
