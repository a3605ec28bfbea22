//! What a recorded stall takes on disk: the whole file of a real load, with its looks at the system, by the stalls in it.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    report::{Budget, Row},
    setting::{Mode, RECORD, RECORD_ONLY, Setting},
};

/// How long each recording is.
const TIME: Duration = Duration::from_secs(10);

/// Bytes a stall.
const SIZE: f64 = 24.0;

/// Measures it.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let load = setting.churn()?;
    let mut rows = Vec::new();
    for mode in [RECORD, RECORD_ONLY] {
        let (mut sizes, mut lost) = (Vec::new(), 0);
        for _ in 0..setting.rounds {
            let (bytes, told_lost) = record(setting, mode)?;
            sizes.push(bytes);
            lost += told_lost;
        }
        let row = Row::new(format!("bytes on disk, churn: {}", mode.name), "bytes/stall", sizes);
        rows.push(row.within(Budget::Most(SIZE)).losing(lost));
    }
    drop(load);
    Ok(rows)
}

fn record(setting: &Setting, mode: Mode) -> Result<(f64, u64)> {
    let tracer = setting.start(mode)?;
    thread::sleep(setting.time(TIME));
    let told = tracer.stop()?;
    ensure!(told.stalls > 0, "the load has not stalled");
    let path = setting.recording();
    let bytes = fs::metadata(&path).with_context(|| format!("no `{}`", path.display()))?.len();
    Ok((bytes as f64 / told.stalls as f64, told.lost))
}
