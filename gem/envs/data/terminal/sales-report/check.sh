# Join the two files, and add up: another way than the obvious one, on the files of the set-up.
set -e
tail -n +2 "$GEM_ORIGINAL/sales.csv" | sort -t , -k 2,2 > "$TMPDIR/sales"
tail -n +2 "$GEM_ORIGINAL/products.csv" | sort > "$TMPDIR/products"
join -t , -1 2 -2 1 "$TMPDIR/sales" "$TMPDIR/products" > "$TMPDIR/joined"
for region in $(cut -d , -f 2 "$TMPDIR/joined" | sort -u); do
    grep ",$region," "$TMPDIR/joined" > "$TMPDIR/one"
    units=0
    revenue=0
    while IFS=, read -r _ _ number price; do
        units=$((units + number))
        revenue=$((revenue + number * price))
    done < "$TMPDIR/one"
    echo "$region,$units,$revenue"
done | sort -t , -k 3,3nr > "$TMPDIR/lines"
(echo region,units,revenue; cat "$TMPDIR/lines") > "$TMPDIR/expected"
tr -d '\r' < report.csv | diff "$TMPDIR/expected" -
