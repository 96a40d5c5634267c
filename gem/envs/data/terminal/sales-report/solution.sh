cd ~
declare -A price units revenue
while IFS=, read -r product euros; do
    price[$product]=$euros
done < products.csv
while IFS=, read -r region product number; do
    if [ "$region" = region ]; then continue; fi # the line of names
    units[$region]=$((${units[$region]:-0} + number))
    revenue[$region]=$((${revenue[$region]:-0} + number * ${price[$product]}))
done < sales.csv
echo region,units,revenue > report.csv
for region in "${!units[@]}"; do
    echo "$region,${units[$region]},${revenue[$region]}"
done | sort -t , -k 3 -n -r >> report.csv
