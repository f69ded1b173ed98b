//! What the generator's lines say: one slice a line, and the ratios of slices within a round. Starts nothing.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::bench::statistics::Series;

/// Share of a slice for which generator and switch together may have been kept from running.
const HELD_UP_MAX: f64 = 0.05;
/// A switch that takes so much of what it is offered waits for the generator.
const TOOK_ALL: f64 = 0.9;

/// What each slice came to, by its round.
#[derive(Debug)]
pub(super) struct Slices {
    pub(super) clock_hz: f64,
    figures: BTreeMap<Place, BTreeMap<u64, Figure>>,
    /// Processor cycles a frame, where the processor's counters could be read.
    cycles: BTreeMap<Place, Vec<f64>>,
}

/// A pattern and a switch.
type Place = (String, String);

#[derive(Clone, Copy, Debug)]
struct Figure {
    /// Million frames a second, or the nanoseconds of a crossing.
    value: f64,
    /// Then the switch waited for the generator, and might have passed more.
    took_all: bool,
}

impl Figure {
    /// Whether one of two streams was the faster one, also if a switch that took all might have passed more.
    fn is_told_from(&self, other: &Figure) -> bool {
        match (self.took_all, other.took_all) {
            (false, false) => true,
            (true, false) => self.value > other.value,
            (false, true) => self.value < other.value,
            (true, true) => false,
        }
    }
}

impl Slices {
    pub(super) fn parse(lines: &str) -> Result<Slices> {
        let mut slices =
            Slices { clock_hz: f64::NAN, figures: BTreeMap::new(), cycles: BTreeMap::new() };
        for line in lines.lines() {
            let (kind, words) = line.split_once(' ').unwrap_or((line, ""));
            let fields: BTreeMap<&str, &str> =
                words.split(' ').filter_map(|word| word.split_once('=')).collect();
            match kind {
                "clock" => {
                    slices.clock_hz = number(&fields, "hz").with_context(|| line.to_owned())?;
                }
                "slice" => slices.add(&fields).with_context(|| line.to_owned())?,
                _ => anyhow::bail!("the generator printed a line of unknown kind: {line}"),
            }
        }
        Ok(slices)
    }

    fn add(&mut self, fields: &BTreeMap<&str, &str>) -> Result<()> {
        let time_ns = number(fields, "ns")?;
        // A slice in which one of the two did not run tells nothing about the switch.
        let kept_ns = number(fields, "held_up_ns")? + number(fields, "waited_ns")?;
        if kept_ns > HELD_UP_MAX * time_ns {
            return Ok(());
        }
        let figure = match number(fields, "crossing_ns") {
            Ok(value) => Figure { value, took_all: false },
            Err(_) => Figure {
                value: number(fields, "received")? / time_ns * 1000.0,
                took_all: number(fields, "sent")? >= TOOK_ALL * number(fields, "offered")?,
            },
        };
        let name = |field: &str| fields.get(field).map(|word| (*word).to_owned());
        let place = name("pattern").zip(name("switch")).context("no pattern or switch")?;
        let round = number(fields, "round")? as u64;
        if let Ok(cycles) = number(fields, "cycles") {
            let frame = cycles / number(fields, "received")?;
            self.cycles.entry(place.clone()).or_default().push(frame);
        }
        self.figures.entry(place).or_default().insert(round, figure);
        Ok(())
    }

    fn of(&self, pattern: &str, switch: &str) -> impl Iterator<Item = (u64, Figure)> {
        let place = (pattern.to_owned(), switch.to_owned());
        self.figures.get(&place).into_iter().flatten().map(|(round, figure)| (*round, *figure))
    }

    pub(super) fn median(&self, pattern: &str, switch: &str) -> f64 {
        self.of(pattern, switch).map(|(_, figure)| figure.value).collect::<Series>().median()
    }

    /// What a frame cost of the processor, by its own counters; `None` where nothing can be read of them.
    pub(super) fn cycles(&self, pattern: &str, switch: &str) -> Option<f64> {
        let cycles = self.cycles.get(&(pattern.to_owned(), switch.to_owned()))?;
        Some(cycles.iter().copied().collect::<Series>().median())
    }

    /// One switch's figures over another's, round by round where both have one.
    pub(super) fn ratio(&self, pattern: &str, switch: &str, other: &str) -> Series {
        self.between([pattern, switch], [pattern, other])
    }

    /// The same of any two patterns of switches.
    pub(super) fn between(&self, one: [&str; 2], other: [&str; 2]) -> Series {
        self.pairs(one, other).map(|(one, other)| one.value / other.value).collect()
    }

    /// The ratio in rounds that tell which is the faster one.
    pub(super) fn lead(&self, pattern: &str, switch: &str, other: &str) -> Series {
        self.pairs([pattern, switch], [pattern, other])
            .filter(|(one, other)| one.is_told_from(other))
            .map(|(one, other)| one.value / other.value)
            .collect()
    }

    fn pairs(&self, one: [&str; 2], other: [&str; 2]) -> impl Iterator<Item = (Figure, Figure)> {
        let others: BTreeMap<u64, Figure> = self.of(other[0], other[1]).collect();
        let ones = self.of(one[0], one[1]);
        ones.filter_map(move |(round, figure)| Some((figure, *others.get(&round)?)))
    }
}

fn number(fields: &BTreeMap<&str, &str>, name: &str) -> Result<f64> {
    let word = fields.get(name).with_context(|| format!("no field '{name}'"))?;
    word.parse().with_context(|| format!("{name} is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "\
clock hz=2600000000
slice pattern=small round=0 switch=a offered=400 sent=100 received=100 ns=1000 held_up_ns=0 waited_ns=0
slice pattern=small round=0 switch=b offered=400 sent=50 received=50 ns=1000 held_up_ns=0 waited_ns=0
slice pattern=small round=1 switch=a offered=400 sent=100 received=100 ns=1000 held_up_ns=0 waited_ns=0
slice pattern=small round=1 switch=b offered=400 sent=100 received=10 ns=1000 held_up_ns=0 waited_ns=900
slice pattern=small round=2 switch=a offered=100 sent=90 received=90 ns=1000 held_up_ns=0 waited_ns=0
slice pattern=small round=2 switch=b offered=90 sent=90 received=90 ns=1000 held_up_ns=0 waited_ns=0
slice pattern=small round=3 switch=a offered=100 sent=100 received=100 ns=1000 held_up_ns=0 waited_ns=0
slice pattern=small round=3 switch=b offered=400 sent=80 received=80 ns=1000 held_up_ns=0 waited_ns=0
slice pattern=small round=4 switch=a offered=60 sent=60 received=60 ns=1000 held_up_ns=0 waited_ns=0
slice pattern=small round=4 switch=b offered=400 sent=80 received=80 ns=1000 held_up_ns=0 waited_ns=0
slice pattern=ping round=0 switch=a sent=9 received=9 ns=1000 held_up_ns=0 waited_ns=0 crossing_ns=440.5
";

    #[test]
    fn figures_are_compared_within_their_round() {
        let slices = Slices::parse(LINES).unwrap();
        assert_eq!(slices.clock_hz, 2.6e9);
        assert_eq!(slices.median("small", "a"), 100.0);
        assert_eq!(slices.ratio("small", "b", "a").median(), 0.9);
        assert_eq!(slices.median("ping", "a"), 440.5);
    }

    #[test]
    fn cycles_are_told_of_slices_that_have_them() {
        let slices = Slices::parse(LINES).unwrap();
        assert_eq!(slices.cycles("small", "a"), None);
        let counted = LINES.replace("waited_ns=0\n", "waited_ns=0 cycles=9000\n");
        assert_eq!(Slices::parse(&counted).unwrap().cycles("small", "a"), Some(90.0));
    }

    #[test]
    fn a_slice_in_which_the_switch_could_not_run_counts_for_nothing() {
        let slices = Slices::parse(LINES).unwrap();
        let rounds: Vec<u64> = slices.of("small", "b").map(|(round, _)| round).collect();
        assert_eq!(rounds, [0, 2, 3, 4]);
    }

    #[test]
    fn who_leads_is_told_by_rounds_in_which_the_slower_one_was_slower_than_the_generator() {
        let slices = Slices::parse(LINES).unwrap();
        for (one, other, leads) in [("a", "b", [1.25, 2.0]), ("b", "a", [0.5, 0.8])] {
            let lead = slices.lead("small", one, other);
            assert_eq!((lead.len(), [lead.quantile(0.0), lead.quantile(1.0)]), (2, leads));
        }
    }

    #[test]
    fn a_line_without_its_fields_is_told() {
        let error = Slices::parse("slice pattern=small round=0 switch=a ns=5").unwrap_err();
        assert!(format!("{error:#}").contains("held_up_ns"), "{error:#}");
        assert!(Slices::parse("EAL: something").is_err());
    }
}
