set -e
state=$GEM_SEED
draw() { # a number below $1, in $drawn
    state=$(((state * 1103515245 + 12345) % 2147483648))
    drawn=$((state / 65536 % $1))
}

mkdir backups
draw 4
whole=$((9 + drawn)) # the days 9 to 13, of which this one is the last that is not damaged
for day in 9 10 11 12 13; do
    mkdir -p settings/users
    draw 50000
    printf '# day %d\nname = service\nport = %d\nsupport = 1\nworkers = 4\n' "$day" "$((8000 + drawn % 999))" \
        > settings/service.conf
    for user in ann ben eve; do
        draw 100000
        echo "token = $drawn" > "settings/users/$user.conf"
    done
    # No times and users in it, so that the same seed makes the same bytes.
    tar --sort=name --mtime=2025-01-01 --owner=0 --group=0 -cf - settings | gzip -n > "backups/backup-$day.tar.gz"
    if [ $day -gt $whole ]; then
        draw 2
        if [ $drawn = 0 ]; then
            truncate -s -40 "backups/backup-$day.tar.gz"
        else
            printf XXXX | dd of="backups/backup-$day.tar.gz" bs=1 seek=60 conv=notrunc status=none
        fi
    fi
    rm -r settings
done
draw 1000
echo $((9000 + drawn)) > port.txt
