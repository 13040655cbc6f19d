// Says hello; with an argument it stays.
fn main() {
    println!("hello");
    while std::env::args().count() > 1 {
        std::thread::sleep(std::time::Duration::from_secs(3600));
    }
}
