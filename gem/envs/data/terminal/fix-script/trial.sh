# Runs the script with orders that the model has not seen: those of the set-up without every third, and a new name.
sed -n 'p;n;p;n' "$GEM_ORIGINAL/orders.csv" | sed 's/,Di,/,Flo of Rye,/' > orders.csv
rm -rf counted.txt
timeout 5 bash count.sh > counted.txt
