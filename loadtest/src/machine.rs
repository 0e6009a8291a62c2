//! The machine on which a run took place, for whoever reads its figures later.

/// Names and values: the date, the kernel, the processors and the memory, as far as they are known.
pub(crate) fn facts() -> Vec<(&'static str, String)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (cpuinfo, meminfo) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let kernel = format!("{} {}", read("/proc/sys/kernel/ostype").trim(), read("/proc/sys/kernel/osrelease").trim());
    vec![
        ("date", jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string()),
        ("kernel", format!("{kernel}, {}", std::env::consts::ARCH)),
        ("processors", processors(&cpuinfo)),
        ("memory", memory(&meminfo).unwrap_or_else(|| "unknown".to_owned())),
    ]
}

/// All that are there, also where this process may use only some.
fn processors(cpuinfo: &str) -> String {
    let values = |key: &'static str| {
        let value = move |line: &str| {
            let (name, value) = line.split_once(':')?;
            (name.trim_end() == key).then(|| value.trim().to_owned())
        };
        cpuinfo.lines().filter_map(value)
    };
    let count = values("processor").count();
    match values("model name").next() {
        Some(name) => format!("{count} × {name}"),
        None => count.to_string(),
    }
}

fn memory(meminfo: &str) -> Option<String> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(format!("{:.1} GiB", kilobytes / 1024.0 / 1024.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_and_memory_are_read() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A < B\n\nprocessor\t: 1\nmodel name\t: A < B\n";
        assert_eq!(processors(cpuinfo), "2 × A < B");
        assert_eq!(processors("processor\t: 0\nBogoMIPS\t: 1\n"), "1");
        assert_eq!(memory("MemTotal:        8388608 kB\nMemFree: 1 kB\n").as_deref(), Some("8.0 GiB"));
        assert_eq!(memory(""), None);
    }
}
