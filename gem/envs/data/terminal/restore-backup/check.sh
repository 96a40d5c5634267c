set -e
mkdir "$TMPDIR/expected"
for day in 13 12 11 10 9; do
    if gzip -t "$GEM_ORIGINAL/backups/backup-$day.tar.gz" 2> /dev/null; then break; fi
done
tar -xzf "$GEM_ORIGINAL/backups/backup-$day.tar.gz" -C "$TMPDIR/expected"
sed -i "s/^port = .*/port = $(cat "$GEM_ORIGINAL/port.txt")/" "$TMPDIR/expected/settings/service.conf"
diff -r "$TMPDIR/expected" restored
