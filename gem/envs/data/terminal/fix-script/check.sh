# The trial ran the script; here none of the model's code runs.
set -e
sed -n 'p;n;p;n' "$GEM_ORIGINAL/orders.csv" | sed 's/,Di,/,Flo of Rye,/' > "$TMPDIR/orders"
cut -d , -f 2 "$TMPDIR/orders" | sort -u | while read -r name; do
    count=0
    total=0
    while IFS=, read -r _ customer amount; do
        if [ "$customer" = "$name" ]; then
            count=$((count + 1))
            total=$((total + 10#$amount))
        fi
    done < "$TMPDIR/orders"
    echo "$name $count $total"
done > "$TMPDIR/expected"
diff "$TMPDIR/expected" counted.txt
