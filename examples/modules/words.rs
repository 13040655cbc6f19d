// Counts the words of its input, and uses what else of std a service needs:
// arguments, environment, files, clocks, an exit code.
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

fn main() -> io::Result<()> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let mut words: BTreeMap<String, u32> = BTreeMap::new();
    for w in text.split_whitespace() {
        *words.entry(w.to_lowercase()).or_default() += 1;
    }
    for (word, n) in &words {
        println!("{word} {n}");
    }
    println!("{:?} {:?}", env::args().skip(1).collect::<Vec<_>>(), env::var("K"));
    fs::create_dir("/data/d")?;
    fs::write("/data/d/f", "text")?;
    fs::rename("/data/d/f", "/data/g")?;
    let mut names = Vec::new();
    for entry in fs::read_dir("/data")? {
        let entry = entry?;
        names.push((entry.file_name().into_string().unwrap(), entry.metadata()?.is_dir()));
    }
    names.sort();
    println!("{:?} {}", names, fs::read_to_string("/data/g")?);
    println!("{}", fs::read("/data/../../etc/passwd").is_err());
    let began = Instant::now();
    thread::sleep(Duration::from_millis(20));
    println!("{}", began.elapsed() >= Duration::from_millis(20));
    io::stderr().write_all(b"done\n")?;
    process::exit(7)
}
