//! How big the agent is while clients come and go, and whether that stays so.

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};

use crate::{
    Arguments,
    node::{Child, Look},
    tally::{Tally, read},
};

/// Looks in a run, and at most this far apart.
const LOOKS: u32 = 60;
const LOOKS_APART_MAX: Duration = Duration::from_secs(10);

/// Of the first looks, a part that is not compared: buffers grow until each was as full as it gets.
const SETTLING: usize = 4;

/// Growth from the beginning to the end of a run that is not called growth: a twentieth, and so much besides, for what
/// allocators and the number of answers under way do on their own.
const SLACK_PARTS: u64 = 20;
const SLACK_KIB: u64 = 2048;
const SLACK_COUNT: u64 = 64;

/// Looks at the agent for as long as the run takes.
pub(crate) async fn follow(child: &mut Child, run: Duration, tally: &Tally) -> Result<Vec<Look>> {
    let (start, apart) = (Instant::now(), (run / LOOKS).min(LOOKS_APART_MAX));
    let mut seen = vec![];
    let mut said = 0;
    while start.elapsed() < run && tally.errors().0 == 0 {
        sleep(apart).await;
        let look = child.look().await?;
        seen.push(look);
        if start.elapsed().as_secs() / 60 > said {
            said = start.elapsed().as_secs() / 60;
            let answered = read(&tally.answered);
            eprintln!("after {said} min: {answered} answers, {} KiB", look.resident_kib);
        }
    }
    Ok(seen)
}

/// Everything that was seen.
pub(crate) struct Verdict<'a> {
    pub(crate) arguments: &'a Arguments,
    pub(crate) tally: &'a Tally,
    /// Before the first client.
    pub(crate) before: Look,
    /// With every client connected and nothing asked.
    pub(crate) idle: Look,
    pub(crate) seen: Vec<Look>,
    /// After the last client.
    pub(crate) after: Look,
}

impl Verdict<'_> {
    /// Prints it; true if everything held.
    pub(crate) fn print(&self) -> Result<bool> {
        let Self {
            arguments,
            tally,
            before,
            idle,
            after,
            ..
        } = self;
        let streams = arguments.streams as u64;
        let each_kib = idle.resident_kib.saturating_sub(before.resident_kib) as f64 / streams as f64;
        println!(
            "{streams} clients, {} idle connections, {} s",
            arguments.idle, arguments.seconds
        );
        let counts = [
            &tally.answered,
            &tally.left,
            &tally.refused,
            &tally.closed,
            &tally.idle_ended,
        ];
        let [answered, left, refused, closed, idle_ended] = counts.map(read);
        println!("answers read whole, each with a true receipt  {answered}");
        println!("answers left in the middle                    {left}");
        println!("refused with a time to come again             {refused}");
        println!("connections closed between two answers        {closed}");
        println!("idle connections that the agent ended         {idle_ended}");
        println!("usage records, in order and without gaps      {}", after.records);
        println!(
            "answers' bytes                                {}",
            read(&tally.bytes)
        );
        println!("agent's memory for a connection without work  {each_kib:.1} KiB");
        println!("                 before  at first  at last    after");
        let (early, late) = self.early_and_late();
        let row = |name: &str, unit: &str, pick: fn(&Look) -> u64| {
            let [before, early, late, after] = [before, &early, &late, after].map(pick);
            println!("{name:<14}{before:>9}{early:>10}{late:>9}{after:>9} {unit}");
        };
        row("memory", "KiB", |look| look.resident_kib);
        row("descriptors", "", |look| look.files as u64);
        row("tasks", "", |look| look.tasks as u64);
        let faults = self.faults(&early, &late);
        for fault in &faults {
            println!("FAILED: {fault}");
        }
        if faults.is_empty() {
            println!("everything held");
        }
        Ok(faults.is_empty())
    }

    /// Medians of the first and last third of the looks.
    fn early_and_late(&self) -> (Look, Look) {
        let settled = &self.seen[self.seen.len() / SETTLING..];
        let third = settled.len() / 3;
        let early = median(&settled[..third]).unwrap_or(self.before);
        (
            early,
            median(&settled[settled.len() - third..]).unwrap_or(self.before),
        )
    }

    fn faults(&self, early: &Look, late: &Look) -> Vec<String> {
        let mut faults = vec![];
        let mut expect = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        let (errors, first) = self.tally.errors();
        expect(
            errors == 0,
            format!("{errors} errors, the first: {}", first.unwrap_or_default()),
        );
        let answered = read(&self.tally.answered);
        expect(answered > 0, "nothing was answered".into());
        let none_left = self.arguments.disconnects > 0 && read(&self.tally.left) == 0;
        expect(!none_left, "no client left in the middle".into());
        // With the one that was asked for before the crowd came. Whoever left before the engine began is not charged.
        let (fewest, left) = (answered + 1, read(&self.tally.left));
        let records = self.after.records;
        expect(
            (fewest..=fewest + left).contains(&records),
            format!("{records} usage records for {fewest} answers and {left} that were left"),
        );
        let memory = early.resident_kib + early.resident_kib / SLACK_PARTS + SLACK_KIB;
        expect(late.resident_kib <= memory, "the agent's memory grew".into());
        for (what, pick) in COUNTS {
            let (early, late) = (pick(early), pick(late));
            expect(
                late <= early + early / SLACK_PARTS + SLACK_COUNT,
                format!("{what} grew"),
            );
            let (before, after) = (pick(&self.before), pick(&self.after));
            expect(
                after <= before,
                format!("{what} stayed: {before} before the first client, {after} after the last"),
            );
        }
        faults
    }
}

type Pick = fn(&Look) -> u64;
const COUNTS: [(&str, Pick); 2] = [
    ("descriptors", |look| look.files as u64),
    ("tasks", |look| look.tasks as u64),
];

fn median(looks: &[Look]) -> Option<Look> {
    let middle = |pick: Pick| {
        let mut values: Vec<_> = looks.iter().map(pick).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied()
    };
    Some(Look {
        tasks: middle(|look| look.tasks as u64)? as usize,
        records: middle(|look| look.records)?,
        files: middle(|look| look.files as u64)? as usize,
        resident_kib: middle(|look| look.resident_kib)?,
        processor_us: middle(|look| look.processor_us)?,
    })
}
