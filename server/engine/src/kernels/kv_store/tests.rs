use super::*;

#[test]
fn sizes_follow_from_type_and_shape() {
    // 1B: 22 layers, 4 kv heads of 64: 32 tokens · 2 · 256 floats in each layer.
    let bytes = |kv_type| KvStore::bytes_per_block(kv_type, 22, 4, 64);
    assert_eq!(bytes(KvType::F32), 22 * 32 * 2 * 256 * 4);
    assert_eq!(bytes(KvType::F16), 22 * 32 * 2 * 256 * 2);
    assert_eq!(bytes(KvType::Int8), 22 * 32 * 2 * (256 + 4 * 4));
    assert_eq!(KvStore::bytes_per_block(KvType::F32, usize::MAX, 1 << 40, 64), u64::MAX);
}

#[test]
fn what_cannot_be_made_is_an_error() {
    for (kv_heads, head_dim, n_blocks) in [(0, 64, 1), (1, 0, 1), (1, 7, 1), (1, 514, 1), (usize::MAX, 64, 7)]
    {
        let error = KvStore::new(KvType::F16, 1, kv_heads, head_dim, n_blocks).map(|_| ()).unwrap_err();
        assert!(!error.is_empty());
    }
    assert!(KvStore::new(KvType::F16, 1, 1, 64, 0).is_ok());
}

#[cfg(target_os = "linux")]
#[test]
fn blocks_that_were_never_written_take_no_memory() {
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let before = resident();
    // 2 GiB.
    let mut store = KvStore::new(KvType::F16, 8, 4, 128, 4096).unwrap();
    assert_eq!(store.slab(0) as usize % 64, 0);
    // Other tests of this process allocate meanwhile.
    assert!(resident().saturating_sub(before) < 1 << 30, "the store is resident from the start");
}
